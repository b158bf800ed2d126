"""Instructions about the form of an answer that can be checked, as MMAU-Pro names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Any]


def follows(text: str, instruction: str, arguments: Arguments, question: str = "") -> bool:
    """Whether an answer does what an instruction asks.

    Args:
        text: The answer.
        instruction: A name of :data:`INSTRUCTIONS`.
        arguments: Its arguments: ``N``, ``N1`` and ``N2`` are counts, the others strings.
        question: The question, for the instruction to repeat it.

    Raises:
        KeyError: For an unknown instruction, or one without its arguments.
    """
    return INSTRUCTIONS[instruction](text, {**arguments, "question": question})


def count_sentences(text: str) -> int:
    """Stretches of text that end with ., ! or ? (the authors use nltk's trained splitter)."""
    return len([part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip()) if re.search(r"\w", part)])


def _words(text: str) -> int:
    return len(text.split())


def _capital_words(text: str) -> int:
    return sum(word.isupper() for word in text.split())


def _letters(text: str, keep: str = "a-z") -> str:
    return re.sub(rf"[^{keep}]", "", text.lower())


def _listed(value: str) -> list[str]:
    return value.lower().split(", ")


def _at_least(count: Callable[[str], int]) -> Callable[[str, Arguments], bool]:
    return lambda text, a: count(text) >= int(a["N"])


def _at_most(count: Callable[[str], int]) -> Callable[[str, Arguments], bool]:
    return lambda text, a: count(text) <= int(a["N"])


def _between(count: Callable[[str], int]) -> Callable[[str, Arguments], bool]:
    return lambda text, a: int(a["N1"]) <= count(text) <= int(a["N2"])


def _exactly(count: Callable[[str], int]) -> Callable[[str, Arguments], bool]:
    return lambda text, a: count(text) == int(a["N"])


def _parts(text: str, splitter: str) -> list[str]:
    return [part.strip() for part in text.split(splitter) if part.strip()]


def _two_responses(text: str, _: Arguments) -> bool:
    parts = [part.strip().lower() for part in text.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


def _keyword_frequency(text: str, a: Arguments) -> bool:
    return len(re.findall(rf"\b{re.escape(a['keyword'].lower())}\b", text.lower())) == int(a["N"])


INSTRUCTIONS: dict[str, Callable[[str, Arguments], bool]] = {
    "Include Keywords": lambda text, a: all(word in text.lower() for word in _listed(a["keywords"])),
    "Keyword Frequency": _keyword_frequency,
    "Forbidden Words": lambda text, a: not any(word in text.lower() for word in _listed(a["forbidden_words"])),
    "Number Paragraphs": _exactly(lambda text: len(_parts(text, "***"))),
    "Number Words (at least)": _at_least(_words),
    "Number Words (at most)": _at_most(_words),
    "Number Words (range)": _between(_words),
    "Number Sentences (at least)": _at_least(count_sentences),
    "Number Sentences (at most)": _at_most(count_sentences),
    "Number Sentences (range)": _between(count_sentences),
    "Postscript": lambda text, a: _letters(a["postscript_marker"]) in _letters(text),
    "Number Placeholder": _at_least(lambda text: len(re.findall(r"\[[^\]]+\]", text))),
    "Number Bullets": _exactly(lambda text: len(re.findall(r"^\s*\*\s+", text, re.MULTILINE))),
    "Title": lambda text, _: bool(re.search(r"<<[^>]+>>", text)),
    "Minimum Number Highlighted Section": _at_least(lambda text: len(re.findall(r"\*[^*]+\*", text))),
    "Multiple Sections": lambda text, a: len(_parts(text, a["section_splitter"])) == int(a["N"]),
    "Repeat Prompt": lambda text, a: text.strip().lower().startswith(a["question"].strip().lower()),
    "Two Responses": _two_responses,
    "All Uppercase": lambda text, _: text.isupper(),
    "All Lowercase": lambda text, _: text.islower(),
    "All-capital Words (at least)": _at_least(_capital_words),
    "All-capital Words (at most)": _at_most(_capital_words),
    "All-capital Words (range)": _between(_capital_words),
    "Start Checker": lambda text, a: _letters(text, "a-z ").startswith(_letters(a["start_phrase"], "a-z ")),
    "End Checker": lambda text, a: _letters(text, "a-z ").endswith(_letters(a["end_phrase"], "a-z ")),
    "Quotation": lambda text, _: text.strip().startswith('"') and text.strip().endswith('"'),
    "No Commas": lambda text, _: "," not in text,
}
"""Whether a text follows an instruction, by the instruction's name."""
