"""Letters and words of the alphabet game qabcs in seven languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from headrouter_pl.data.pocket.clips import Clip, Source
from headrouter_pl.data.pocket.sources._items import category_of, item_of
from headrouter_pl.data.pocket.sources._text import LANGUAGES, distinct, find, latin_letter, letter_content

__all__ = ["SOURCE"]

PACKAGE = "qabcs-data"
FOLDER = "qabcs/abcs"
# "animals:a=affe==chimpanzee=chimpanzee": group, letter, word, syllables, picture, noise.
LINE = re.compile(r"^(\w+):[^=]+=([^=]+)=([^=]*)=([^=\s]+)", re.MULTILINE)
CATEGORIES = {"animals": "animal", "food": "food", "instrument": "instrument"}
# Words that the picture's name does not translate -> what they name, "" where the word names several things.
_UNCLEAR = (
    "ähre drachen cymbałki dźwig dźwięk instrument sałatka świst_trapowy ćwierćnuta пад’ёмны_кран маланка горох "
    "деньги молния разъём цимбалы часы чипсы юрок ягоды змій кепка меч удав цимбали чипси шайба їжа"
)
NAMED = {"affe": "monkey", "łasica": "weasel", "рыба": "fish", "щенок": "puppy"} | dict.fromkeys(_UNCLEAR.split(), "")
NO_WORD = frozenset({"ы"})  # a copy of the letter
GENDERS = {"en": "man", "de": "man"}  # from the pitch of unsealed clips, where it is plainly that of one grown-up


def words_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Name of a sound -> group and picture."""
    found: dict[str, tuple[str, str]] = {}
    for listing in sorted(folder.glob("abc*.properties")):
        for group, word, _, picture in LINE.findall(listing.read_text(encoding="utf-8")):
            found.setdefault(word.strip().lower().replace(" ", "_"), (group, picture))
    return found


def index(root: Path) -> Iterator[Clip]:
    """Clips of letters, and of words whose picture tells the English name."""
    yield from distinct(root, _clips(root))


def _clips(root: Path) -> Iterator[Clip]:
    known: dict[Path, dict[str, tuple[str, str]]] = {}
    for key, path in find(root, FOLDER, ".ogg", PACKAGE):
        kind, folder = path.parent.name, path.parent.parent.parent
        if kind not in ("alpha", "words") or folder.name not in LANGUAGES or (kind == "words" and path.stem in NO_WORD):
            continue
        language = LANGUAGES[folder.name]
        if folder not in known:
            known[folder] = words_of(folder)
        said, voice = path.stem.replace("_", " "), folder.name.partition("_")[0]
        group, picture = known[folder].get(path.stem, ("", ""))
        if language == "English":
            picture = picture or path.stem
        letter = kind == "alpha"
        item = "" if letter or not picture else NAMED.get(path.stem, item_of(picture))
        english = said if language == "English" else item
        yield Clip(
            key=key,
            package=PACKAGE,
            kind="speech",
            content=_content(said, letter, item),
            voice=f"qabcs/{voice}",
            gender=GENDERS.get(voice, ""),
            language=language,
            text=said.upper() if letter else said,
            english=english,
            code=latin_letter(path.stem) if letter else "",
            item=item,
            category=(category_of(item) or CATEGORIES.get(group, "")) if item else "",
            licence="GPL-3.0-or-later",
        )


def _content(said: str, letter: bool, item: str) -> str:
    if letter:
        return letter_content(said)
    return f"item:{item}" if item else f"qabcs:{said}"


SOURCE = Source("qabcs", {PACKAGE: "1.0.2-6"}, index)
