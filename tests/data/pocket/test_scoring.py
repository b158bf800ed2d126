"""What counts as right, and what is reported."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrouter_pl.data.pocket.benchmark import PocketItem
from headrouter_pl.data.pocket.questions import QUESTION_TASKS
from headrouter_pl.data.pocket.scoring import (
    TARGETS,
    Answered,
    confusions,
    normalize,
    score_answer,
    summarize,
    target,
    wilson,
)


def make(
    task: str, answer: str, options: tuple[str, ...] = (), seconds: float = 8.0, chance: float = 0.25
) -> PocketItem:
    kind = QUESTION_TASKS[task].type
    return PocketItem("k", "a.flac", seconds, task, kind, "?", answer, options, chance, ((0.0, 1.0),), ((0, 25),))


RIGHT, WRONG, INVALID = (True, True), (False, True), (False, False)
SOUNDS = ("drum", "drum kit", "bell", "water")
LETTERS = ("A", "B", "I", "Q")
LINES = ("What is this?", "There's one of them.", "Where is the exit?", "No.")


@pytest.mark.parametrize(
    ("task", "answer", "options", "text", "want"),
    [
        # open answers
        ("sound", "drum", (), "drum", RIGHT),
        ("sound", "drum", (), "The drum.", RIGHT),
        ("sound", "drum", (), " a DRUM!\n", RIGHT),
        ("sound", "drum", (), "drums", WRONG),
        ("sound", "drum", (), "It is a drum", WRONG),
        ("sound", "drum", (), "", INVALID),
        ("sound", "drum", (), "...", INVALID),
        ("language", "Mandarin", (), "mandarin.", RIGHT),
        ("language", "Mandarin", (), "Czech", WRONG),
        ("speaker", "HillBilly", (), "Hillbilly", RIGHT),
        ("phrase", "i'm hit", (), "I’m hit!", RIGHT),
        ("phrase", "come on then", (), "come on", WRONG),
        # codes
        ("code", "7", (), "seven", RIGHT),
        ("code", "7", (), "7.", RIGHT),
        ("code", "7", (), "17", WRONG),
        ("code", "21", (), "Twenty-one", RIGHT),
        ("code", "21", (), "twenty one", RIGHT),
        ("code", "21", (), "twenty", WRONG),
        ("code", "100", (), "a hundred", RIGHT),
        ("code", "1205", (), "one thousand two hundred and five", RIGHT),
        ("code", "1000", (), "1,000", RIGHT),
        ("code", "12", (), "one two", WRONG),
        ("code", "x-ray", (), "Xray", RIGHT),
        ("code", "x-ray", (), "x ray", RIGHT),
        ("code", "alpha", (), "Alfa", RIGHT),
        ("code", "A", (), "a", RIGHT),
        ("code", "A", (), "A.", RIGHT),
        ("code", "B", (), "the B", RIGHT),
        ("code", "A", LETTERS, "A", RIGHT),
        ("code", "A", LETTERS, "The A", RIGHT),
        ("code", "B", LETTERS, "B or A", WRONG),
        ("code", "B", LETTERS, "C", INVALID),
        ("voice_count", "2", (), "two", RIGHT),
        # options
        ("sound", "bell", SOUNDS, "bell", RIGHT),
        ("sound", "bell", SOUNDS, "The bell, I think", RIGHT),
        ("sound", "bell", SOUNDS, "bell or water", WRONG),
        ("sound", "bell", SOUNDS, "water", WRONG),
        ("sound", "bell", SOUNDS, "It is a bell", WRONG),
        ("sound", "bell", SOUNDS, "whale", INVALID),
        ("sound", "bell", SOUNDS, "", INVALID),
        ("sound", "drum", SOUNDS, "drum kit", WRONG),
        ("sound", "drum kit", SOUNDS, "drum kit", RIGHT),
        ("sound", "drum", SOUNDS, "drumming", INVALID),
        ("gender", "man", ("man", "woman"), "a man", RIGHT),
        ("gender", "man", ("man", "woman"), "woman", WRONG),
        ("gender", "man", ("man", "woman"), "man or woman", WRONG),
        ("same_speaker", "yes", ("yes", "no"), "Yes, it is the same.", RIGHT),
        ("same_speaker", "no", ("yes", "no"), "Yes", WRONG),
        ("line", LINES[1], LINES, "There's one of them", RIGHT),
        ("line", LINES[1], LINES, "theres one of them!", RIGHT),
        ("line", LINES[1], LINES, "There's", INVALID),
        # transcription: exactly right
        ("transcription", "please hold", (), "Please, hold.", RIGHT),
        ("transcription", "please hold", (), "please", WRONG),
        ("transcription", "please hold", (), "", INVALID),
    ],
)  # fmt: skip
def test_answers(task: str, answer: str, options: tuple[str, ...], text: str, want: tuple[bool, bool]) -> None:
    score = score_answer(make(task, answer, options), text)
    assert (score.right, score.valid) == want


@pytest.mark.parametrize("task", QUESTION_TASKS)
def test_the_answer_itself_is_right(task: str) -> None:
    for answer in ("A", "7", "twenty one", "the end", "i'll be back", "x-ray"):
        assert score_answer(make(task, answer), answer).right
        assert task == "transcription" or score_answer(make(task, answer, ("zebra", answer)), answer).right


def test_numbers() -> None:
    for value, text in ((0, "zero"), (19, "nineteen"), (40, "forty"), (99, "ninety-nine"), (305, "three hundred five")):
        assert normalize(text) == normalize(str(value)) == (str(value),)
    assert normalize("one of them") == ("1", "of", "them")


def test_word_errors() -> None:
    score = score_answer(make("transcription", "please hold the line"), "please hold line now")
    assert (score.errors, score.words) == (2, 4)


def test_wilson() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_targets() -> None:
    assert set(TARGETS) < set(QUESTION_TASKS)
    assert [target("gender", s) for s in (8, 15, 30, 60, 300)] == [0.95, 0.95, 0.855, 0.7125, 0.7125]
    assert target("line", 8) is None


def rows_of(results: list[Answered]) -> dict[tuple[str, str, Any], dict[str, Any]]:
    rows = summarize(results)
    json.dumps(rows)
    return {(row["task"], row["type"], row["length_s"]): row for row in rows}


def test_summary() -> None:
    sides = ("man", "woman")
    results = [
        Answered(make("gender", "man", sides, s, 0.5), text, "woman")
        for s, text in ((8, "man"), (8, "woman"), (15, "man"), (15, "who"), (30, "man"), (60, "man"), (300, "man"))
    ]  # fmt: skip
    results += [Answered(make("voice_count", "2", (), 8, 1 / 3), "two", "2")]
    rows = rows_of(results)
    gender = [length for task, _, length in rows if task == "gender"]
    assert sorted(gender, key=str) == sorted([8, 15, "8-15", 30, 60, 300, "60-300"], key=str)
    row = rows["gender", "voice", "8-15"]
    assert (row["n"], row["accuracy"], row["invalid"], row["accuracy_silenced"]) == (4, 0.5, 1, 0.0)
    assert (row["target"], row["reached"], row["chance"]) == (0.95, False, 0.5)
    assert row["ci95"][0] < 0.5 < row["ci95"][1]
    assert "target" not in rows["gender", "voice", 8]
    assert rows["gender", "voice", 30]["reached"]
    assert rows["gender", "voice", "60-300"]["target"] == 0.7125
    assert rows["all", "voice", 8]["n"] == 3
    assert rows["all", "voice", 8]["chance"] == pytest.approx(4 / 9, abs=1e-4)
    assert "wer" not in row


def test_summary_of_transcription_without_silence() -> None:
    results = [Answered(make("transcription", "please hold", seconds=s), text)
               for s, text in ((8, "please hold"), (8, "please"), (15, "hold please now"))]  # fmt: skip
    row = rows_of(results)["transcription", "semantic", "8-15"]
    assert row["accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert row["wer"] == pytest.approx((0 + 1 + 3) / 6, abs=0.17)  # one alignment of the third has 2 errors
    assert row["wer_ci95"][0] <= row["wer"] <= row["wer_ci95"][1]
    assert not {"accuracy_silenced", "wer_silenced"} & row.keys()


def test_confusions() -> None:
    items = [make("sound", "bell", SOUNDS), make("sound", "bell", SOUNDS), make("sound", "bell"), make("gender", "man")]
    results = [Answered(i, t) for i, t in zip(items, ("The water", "water, I think", "Bell", "man"), strict=True)]
    assert confusions(results, "sound") == [("bell", "water", 2), ("bell", "bell", 1)]
