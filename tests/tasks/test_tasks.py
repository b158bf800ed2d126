"""Parsers, metrics and the table of tasks."""

from __future__ import annotations

import json
import unicodedata

import pytest
import torch

from headrouter_pl.errors import UnknownNameError
from headrouter_pl.tasks import (
    TASKS,
    AnswerAccuracy,
    StringMatch,
    Task,
    get_task,
    read_answer,
    read_choice,
    read_transcript,
)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("It was the best of times, it was ...", "it was the best of times it was"),
        ("  Don't -- stop! ", "don't stop"),
        ("STRASSE Straße", "strasse strasse"),
        ("12,5 km", "12 5 km"),
        ("Ça va? 你好。", "ça va 你好"),
        (" ... ", ""),
        ("", ""),
        ("snake_case, x²: ½ o’clock 'quoted' rock''n'", "snake_case x² ½ o'clock quoted rock n"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
        ("क्\u200dया, می\u200cروم", "क्या میروم"),  # joiners, which not every text has
        ("สวัสดี ชาวโลก", "สวัสดี ชาวโลก"),
        ("مَرْحَبًا، يَا عَالَمُ؟", "مَرْحَبًا يَا عَالَمُ"),
        ("Cafe\u0301 I\u0307stanbul", "café i\u0307stanbul"),
        ("I ❤\ufe0f you \u0301 1\ufe0f", "i you 1"),  # a mark alone is no word
    ],
)
def test_read_transcript(text: str, want: str) -> None:
    assert read_transcript(text) == want
    assert read_transcript(want) == want  # targets are parsed by it too
    for form in ("NFC", "NFD"):
        assert read_transcript(unicodedata.normalize(form, text)) == want


def test_words_of_scripts_with_marks_count_as_words() -> None:
    spoken = "नमस्ते दुनिया"
    metric = TASKS["transcription"].metric()
    metric.update([read_transcript("नमसते दुनिया")], [read_transcript(spoken)])  # without the virama: one word of two
    assert metric.compute() == 0.5
    match = StringMatch()
    match.update(["मेरी किताब", "यह कि है"], ["किताब", "की"])  # another vowel sign is another word
    assert match.compute() == 0.5


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("B", "B"),
        ("b", "B"),
        (" C.\n", "C"),
        ("(b) dog", "B"),
        ("D) A dog barks", "D"),
        ("A: dog", "A"),
        ("The answer is C.", "C"),
        ("The right option is (D), a dog.", "D"),
        ("It is B because B is louder", "B"),
        ("A or B", None),
        ("Option A is right", "A"),
        ("It is a dog, A", "A"),
        ("Rather A and C", None),
        ("Hardly A dog, so B", "B"),
        ("Either C or D.", None),
        ("A dog barks", None),
        ("I cannot tell", None),
        ("none of them", None),
        ("", None),
    ],
)
def test_read_choice(text: str, want: str | None) -> None:
    assert read_choice(text) == want


@pytest.mark.parametrize(
    ("text", "want"), [(" A dog. ", "A dog"), ("yes", "yes"), ("3.5", "3.5"), (" . ", None), ("", None), ("...", None)]
)
def test_read_answer(text: str, want: str | None) -> None:
    assert read_answer(text) == want


class TestAnswerAccuracy:
    def test_counts_over_batches(self) -> None:
        metric = AnswerAccuracy()
        metric.update(["B", None, "yes"], ["b", "C", "no"])
        metric.update(["Straße"], ["STRASSE"])
        metric.update([], [])
        assert metric.compute() == pytest.approx(2 / 4)
        metric.reset()
        metric.update([], [])
        assert metric.compute() == 0  # of nothing

    def test_unreadable_is_never_right(self) -> None:
        metric = AnswerAccuracy()
        metric.update([None, None], ["", "None"])
        assert metric.compute() == 0

    def test_lengths_must_match(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            AnswerAccuracy().update(["a"], ["a", "b"])

    def test_states_add_up_over_processes(self) -> None:
        metric = AnswerAccuracy()
        reduced = {name: metric._reductions[name](torch.tensor([1, 2])) for name in ("correct", "total")}
        assert {name: int(value) for name, value in reduced.items()} == {"correct": 3, "total": 3}


class TestTable:
    def test_by_name_or_as_given(self) -> None:
        assert get_task("voice") is TASKS["voice"]
        mine = Task("mine", "sound", "What?", read_answer, AnswerAccuracy)
        assert get_task(mine) is mine

    def test_unknown_names_the_nearest(self) -> None:
        with pytest.raises(
            UnknownNameError, match=r"Unknown task 'choise'. Did you mean 'choice'\? Known tasks: audiomarathon-asc"
        ):
            get_task("choise")

    @pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
    def test_entries_are_whole(self, task: Task) -> None:
        assert TASKS[task.name] is task
        assert task.type in {"semantic", "voice", "sound"}
        assert task.max_new_tokens > 0
        metric = task.metric()
        assert metric is not task.metric()
        answer = task.parse("B")
        assert answer is not None
        target = json.dumps({"task_identifier": "No Commas", "kwargs": {}}) if "instruction" in task.name else answer
        metric.update([answer], [target])
        best = {True: 1.0, False: 0.0}[bool(metric.higher_is_better)]
        assert metric.compute() == best

    def test_word_error_rate_is_the_metric_of_transcripts(self) -> None:
        metric = TASKS["transcription"].metric()
        metric.update(["it was the west of times"], ["it was the best of times"])
        metric.update(["a"], ["a b c d"])
        assert metric.compute() == pytest.approx((1 + 3) / (6 + 4))
