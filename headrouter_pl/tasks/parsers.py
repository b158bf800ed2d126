"""Parsers: from what a model said to an answer, or to None where it gave none or several."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from headrouter_pl.tasks.base import LETTERS

_NO_OPTIONS = "ABCDEFGH"  # letters that may be answers where the options are not known
_QUOTES = " \t\r\n'’‘`\"“”„«»「」『』"
_MARKS = str.maketrans(dict.fromkeys('*`"“”„«»「」『』【】', " "))

# Letters are told from words by ASCII neighbours alone: in "答案是B" no space stands between.
_BEFORE, _AFTER = r"(?<![A-Za-z0-9'’\-])", r"(?![A-Za-z0-9'’#♯♭]|-[A-Za-z])"
_SAYS = (
    r"(?:answer|option|choice|letter|antwort|lösung|réponse|respuesta|opción|risposta|resposta|ответ|вариант|答案|选项|選項"
    r"|选择|選擇|答え|選択肢|정답|답)"
)
_IS = r"(?:\s*(?:is|was|be|would be|should be|must be|ist|est|es|è|é|是|为|為|は|은|는))?"
_STATED = re.compile(
    rf"{_SAYS}{_IS}[\s:：\-(\[]*(?:(?:option|choice|letter)\s*)?[(\[]?([A-Za-z]){_AFTER}(?=(?P<rest>.{{0,12}}))",
    re.IGNORECASE | re.DOTALL,
)
_LISTED = re.compile(
    r"^[)\].]?\s*(?:,|/|&|\band\b|\bor\b|或|和|、)\s*(?:or\s+|and\s+|option\s+)?[(\[]?([A-Za-z])(?![A-Za-z])"
)
# "B)", "(b)", "B:", and "B." at the beginning or before more; not at the end of a sentence such as "B or C."
_DELIMITED = re.compile(
    rf"(?:{_BEFORE}([A-Z])|(?:^|(?<=[\s(\[]))([a-z]))"
    r"(?:[)\]:]|(?<=^.)\.(?=\s|$)|(?<!\b[oO]r\s.)(?<!\b[aA]nd\s.)\.(?=\s+\S))"
)
_CAPITAL = re.compile(rf"{_BEFORE}([A-Z]){_AFTER}(?!\s(?:major|minor|sharp|flat)\b)(?=(?P<rest>.{{0,12}}))", re.DOTALL)
_LAST = re.compile(r"(?:\b(?:is|be|it's|so)\s|[,:]\s?)([b-z])[.!]?$")
_DENIED = re.compile(
    r"(?:\b(?:not|isn['’]t|wasn['’]t|neither|nor|never|than|instead of|without)|不是)"
    r"\s*(?:an?\s+|the\s+|option\s+)?[(\[]?$",
    re.IGNORECASE,
)
# After "A", words that show it to be a letter; before any other it is an article.
_LETTER_GOES_ON = re.compile(r"\s+(?:and|as|because|but|fits|is|matches|nor|or|seems|since|was|would)\b")
_LABEL = re.compile(r"^[(\[]?[A-Z][)\].:]\s+")
_FORMS = dict.fromkeys((0x200C, 0x200D, *range(0xFE00, 0xFE10)))  # joiners, variation selectors: how a letter looks
# What models say before a transcript, and nothing else before the colon: "Sure! Here is the transcript of the audio:".
_NOUN = r"(?:transcript(?:ion)?|(?:spoken|transcribed)\ (?:words|text)|content|audio|speech|speaker(?:\ \d)?|recording)"
_OPENING = re.compile(
    rf"""^\W*(?:(?:sure(?:\ thing)?|certainly|of\ course|okay|ok|yes)\W+)?
    (?:
      (?:(?:here\ is|here['’]s|this\ is|below\ is)\ )?
      (?:
        (?:(?:the|a)\ )?(?:(?:full|complete|exact|verbatim|original|audio|speech|spoken|transcribed)\ )?{_NOUN}
        | what\ (?:(?:the\ {_NOUN}\ )?(?:says|is\ said|was\ said)|i\ hear|i\ heard)
      )
      (?:\ (?:of|from|for|in)\ (?:(?:the|this|your)\ (?:(?:given|provided|audio|original)\ )?{_NOUN}|what\ is\ said))*
      (?:\ (?:says|reads|contains|is\ saying|is))?(?:\ (?:as\ follows|follows|below|the\ following))?
      | here\ (?:it\ is|you\ go) | sure
    )
    \W{{0,3}}?:""".replace("\\ ", r"\s+"),  # any space
    re.IGNORECASE | re.VERBOSE,
)


def read_transcript(text: str, options: Sequence[str] = ()) -> str:
    """Lower-cased words without punctuation, as word error rates are counted.

    Words are letters with their combining marks, numbers, and apostrophes within. Of languages that are written without
    spaces, a run of letters is one.

    Example:
        >>> read_transcript("It was the best of times, it was ...")
        'it was the best of times it was'
    """
    # NFKC would make other words: of ½, 1 and 2.
    text = unicodedata.normalize("NFC", text.casefold()).translate(_FORMS).replace("’", "'")
    # \w has no marks; without them, vowel signs would be lost, and split words.
    text = re.sub(r"[^\w']", lambda c: c[0] if unicodedata.category(c[0])[0] == "M" else " ", text)
    return " ".join(re.findall(r"\w[^ ']*(?:'\w[^ ']*)*", text))


def read_spoken(text: str, options: Sequence[str] = ()) -> str | None:
    """A transcript without what models like to say before it; None if nothing is left.

    Example:
        >>> read_spoken("Sure! The transcription: It was the best of times.")
        'it was the best of times'
    """
    return read_transcript(_OPENING.sub("", text)) or None


def read_answer(text: str, options: Sequence[str] = ()) -> str | None:
    """The answer itself, without quotation marks about it, and punctuation at its end.

    Example:
        >>> read_answer('"Yes, sir!"')
        'Yes, sir'
    """
    return text.strip(_QUOTES).rstrip(f".,;:!?。！？…{_QUOTES}") or None


def read_text(text: str, options: Sequence[str] = ()) -> str | None:
    """The whole answer as it was said, for metrics that judge its form; None if it is empty."""
    return text if text.strip() else None


def read_choice(
    text: str, options: Sequence[str] = (), *, aliases: Mapping[str, Sequence[str]] | None = None
) -> str | None:
    """The letter of the one option that an answer names.

    In this order: the text of an option and nothing else; the letter that "the answer is", or that stands alone or
    before a bracket, a colon or a full stop; a capital letter in running text; the text of an option in running text.
    Where one of these names two options, or none does, there is no answer. A letter counts more than the text behind
    it, but not one that is part of an option's text ("vitamin C").

    Args:
        text: What the model said.
        options: Texts of the options; without any, letters from A to H are read, and no texts.
        aliases: Other words for an option, by its text.

    Example:
        >>> [read_choice(text) for text in ("B", "(b) dog", "The answer is C.", "A or B", "I cannot tell")]
        ['B', 'B', 'C', None, None]
        >>> read_choice("I can hear a dog barking.", ("cat", "dog"))
        'B'
    """
    text = _plain(text)
    letters = LETTERS[: len(options)] if options else _NO_OPTIONS
    said = _trimmed(text)
    whole = [a for a, b in zip(letters, options, strict=False) if len(_bare(b)) > 1 and said in (_bare(b), _trimmed(b))]
    if len(whole) == 1:
        return whole[0]
    outside = _without_lettered(text, options)
    for find in (_stated, _delimited, _capitals):
        if found := {letter for letter in find(outside) if letter in letters}:
            return found.pop() if len(found) == 1 else None
    named = _named(text, options, aliases or {})
    return letters[named.pop()] if len(named) == 1 else None


def read_option(text: str, options: Sequence[str] = ()) -> str | None:
    """Like :func:`read_choice`, but the option's text: for options that are classes, in an order of their own."""
    letter = read_choice(text, options)
    return options[LETTERS.index(letter)] if letter and options else letter


def right_choice(answer: str, options: Sequence[str]) -> str:
    """The letter of a right answer, which data give as an option's text or as a letter.

    Raises:
        ValueError: If it is neither, or an option that no letter is left for.
    """
    place = right_option(answer, options)
    if place >= len(LETTERS):
        raise ValueError(f"{answer!r} is option {place + 1}, and there are {len(LETTERS)} letters")
    return LETTERS[place]


def right_option(answer: str, options: Sequence[str]) -> int:
    """Which of the options a right answer is, which data give as an option's text or as a letter.

    Raises:
        ValueError: If it is neither.
    """
    texts = [_bare(option) for option in options]
    if texts.count(_bare(answer)) == 1:
        return texts.index(_bare(answer))
    letter = answer.strip().strip("().").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        return LETTERS.index(letter)
    raise ValueError(f"the answer {answer!r} is neither a letter nor one of the options {list(options)}")


def _plain(text: str) -> str:
    """Full-width and circled letters as ASCII, without markup and quotation marks."""
    text = re.sub(r"(?<!\w)['‘’]|['‘’](?!\w)", " ", unicodedata.normalize("NFKC", text))
    lines = re.sub(r"</?\w+>", " ", text).translate(_MARKS).splitlines()
    return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def _trimmed(text: str) -> str:
    return _plain(text).replace("\n", " ").casefold().strip(" .,;:!?()[]'")


def _bare(text: str) -> str:
    """An option without what it may be labelled with in the data."""
    return _trimmed(_LABEL.sub("", _plain(text)))


def _stated(text: str) -> Iterator[str]:
    for match in _STATED.finditer(text):
        letter, rest = match[1], match["rest"]
        if letter.upper() == "A" and _is_article(rest):
            continue
        if _DENIED.search(text[: match.start(1)]):
            continue
        yield letter.upper()
        rest = text[match.end(1) :]
        while more := _LISTED.match(rest):
            rest = rest[more.end() :]
            if not (more[1].upper() == "A" and _is_article(rest)):
                yield more[1].upper()


def _delimited(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if match := re.fullmatch(r"\W*([A-Za-z])[^\w#♯♭]*", line):
            yield match[1].upper()
    for match in _DELIMITED.finditer(text):
        if not _DENIED.search(text[: match.start()]):
            yield (match[1] or match[2]).upper()


def _capitals(text: str) -> Iterator[str]:
    for match in _CAPITAL.finditer(text):
        article = match[1] == "A" and _is_article(match["rest"])
        pronoun = match[1] == "I" and match["rest"][:1].isspace()
        if not (article or pronoun or _DENIED.search(text[: match.start()])):
            yield match[1]
    if last := _LAST.search(text):
        yield last[1].upper()


def _without_lettered(text: str, options: Sequence[str]) -> str:
    """The text with a word in the place of each option whose own text has a letter that stands alone."""
    lettered = [
        bare for bare in map(_bare, options) if len(bare) > 1 and re.search(r"(?<![^\W_])[a-z](?![^\W_])", bare)
    ]
    for bare in sorted(lettered, key=len, reverse=True):
        words = r"\s+".join(map(re.escape, bare.split()))
        text = re.sub(rf"(?<!\w){words}(?!\w)", "this", text, flags=re.IGNORECASE)
    return text


def _is_article(rest: str) -> bool:
    return bool(re.match(r"\s+[a-z]", rest)) and not _LETTER_GOES_ON.match(rest)


def _named(text: str, options: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> set[int]:
    """Options whose texts stand in the text, as words of their own and not within a longer option."""
    text = text.casefold().replace("\n", " ")
    spans = []
    for index, option in enumerate(options):
        for name in (option, *aliases.get(option, ())):
            bare = _bare(name)
            if len(bare) < 2 and bare.isascii():
                continue  # a letter, or nothing
            # Scripts without spaces have no words to stand between.
            first, last = (
                (r"(?<!\w)(?<!\d[-–.,:])", r"(?!\w|[-–.,:]\d)") if re.search(r"[A-Za-zÀ-ӿ0-9]", bare) else ("", "")
            )
            for match in re.finditer(first + re.escape(bare) + last, text):
                if not _DENIED.search(text[: match.start()]):
                    spans.append((match.start(), match.end(), index))
    return {
        index
        for begin, end, index in spans
        if not any(b <= begin and end <= e and (e - b) > (end - begin) and i != index for b, e, i in spans)
    }
