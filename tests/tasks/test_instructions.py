"""Instructions about the form of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from headrouter_pl.tasks.instructions import INSTRUCTIONS, count_sentences, follows

CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "Include Keywords": ({"keywords": "Dog, loud"}, ["A LOUD dog"], ["a dog", ""]),
    "Keyword Frequency": ({"keyword": "dog", "N": 2}, ["Dog and dog"], ["dog", "dogs dog", "dog dog dog"]),
    "Forbidden Words": ({"forbidden_words": "cat, rain"}, ["a dog"], ["It RAINED"]),
    "Number Paragraphs": ({"N": 2}, ["one *** two"], ["one", "one *** two *** three"]),
    "Number Words (at least)": ({"N": 2}, ["one two", "one two three"], ["one"]),
    "Number Words (at most)": ({"N": 2}, ["one two", "one"], ["one two three"]),
    "Number Words (range)": ({"N1": 2, "N2": 3}, ["a b", "a b c"], ["a", "a b c d"]),
    "Number Sentences (at least)": ({"N": 2}, ["One. Two!"], ["One."]),
    "Number Sentences (at most)": ({"N": 1}, ["One.", "One"], ["One. Two?"]),
    "Number Sentences (range)": ({"N1": 1, "N2": 2}, ["One. Two."], ["One. Two. Three."]),
    "Postscript": ({"postscript_marker": "P.S."}, ["Yes. P.S. No.", "ps: no"], ["Yes."]),
    "Number Placeholder": ({"N": 2}, ["[name] in [place]"], ["[name]", "name"]),
    "Number Bullets": ({"N": 2}, ["* one\n* two"], ["* one", "one * two"]),
    "Title": ({}, ["<<Dogs>> They bark."], ["Dogs", "<<>>"]),
    "Minimum Number Highlighted Section": ({"N": 2}, ["*a* and *b*"], ["*a*"]),
    "Multiple Sections": ({"N": 2, "section_splitter": "Section"}, ["Section one Section two"], ["Section one"]),
    "Repeat Prompt": ({}, ["what IS it? A dog."], ["A dog."]),
    "Two Responses": ({}, ["one ****** two"], ["one", "one ****** One ", "a ****** b ****** c"]),
    "All Uppercase": ({}, ["A DOG"], ["A dog"]),
    "All Lowercase": ({}, ["a dog"], ["A dog"]),
    "All-capital Words (at least)": ({"N": 2}, ["A BIG dog"], ["A dog"]),
    "All-capital Words (at most)": ({"N": 1}, ["A dog"], ["A BIG dog"]),
    "All-capital Words (range)": ({"N1": 1, "N2": 2}, ["A BIG dog"], ["dog", "A BIG DOG"]),
    "Start Checker": ({"start_phrase": "I hear:"}, ["I hear a dog", "i HEAR, a dog"], ["A dog I hear"]),
    "End Checker": ({"end_phrase": "The end."}, ["A dog. The end"], ["The end. A dog"]),
    "Quotation": ({}, [' "A dog" '], ['"A dog', "A dog"]),
    "No Commas": ({}, ["a dog"], ["a dog, a cat"]),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_followed_and_not(name: str) -> None:
    arguments, followed, not_followed = CASES[name]
    assert [follows(text, name, arguments, "What is it?") for text in followed] == [True] * len(followed)
    assert [follows(text, name, arguments, "What is it?") for text in not_followed] == [False] * len(not_followed)


def test_a_missing_argument_is_an_error() -> None:
    with pytest.raises(KeyError, match="N2"):
        follows("a", "Number Words (range)", {"N1": 1})
    with pytest.raises(KeyError, match="Sing"):
        follows("a", "Sing", {})


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("One", 1), ("One. Two", 2), ('"One." Two?', 2), ("3.5 km. Far!", 2), ("...", 0)]
)
def test_count_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count
