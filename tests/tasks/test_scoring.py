"""Scores of several tasks in one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torchmetrics import Metric

from headrouter_pl.errors import ConfigurationError, UnknownNameError
from headrouter_pl.tasks import TASKS, AnswerAccuracy, MacroF1, MeanWER, Task, read_answer
from headrouter_pl.tasks.metrics import CorpusWER, StringMatch
from headrouter_pl.tasks.scoring import (
    PackedScores,
    TaskScores,
    agreement_with,
    percent_of,
    score_batch,
    summarize,
    table,
)

OPTIONS = ["dog", "cat", "rain"]
BATCH: dict[str, Any] = {
    "keys": ["1", "2", "3", "4"],
    "answers": ["B", "C", "two words", "it was"],
    "task_names": ["audiomarathon-sed", "audiomarathon-sed", "", "audiomarathon-asr"],
    "options": [OPTIONS, OPTIONS, [], []],
    "cut_seconds": [0.0, 2.5, 0.0, 0.0],
    "failures": [
        {"key": "5", "task": "audiomarathon-sed", "answer": "A", "options": OPTIONS, "error": "x.wav is silent"}
    ],
}
TEXTS = ["a cat", "no idea", "Two words.", "It is"]


def rows(batch: dict[str, Any] = BATCH, texts: list[str] = TEXTS) -> list[dict[str, Any]]:
    return score_batch(batch, texts, TASKS["question"])


class TestRows:
    def test_each_sample_by_its_task(self) -> None:
        found = rows()
        assert [row["key"] for row in found] == ["1", "2", "3", "4", "5"]
        assert [row["task"] for row in found] == [
            "audiomarathon-sed", "audiomarathon-sed", "question", "audiomarathon-asr", "audiomarathon-sed",
        ]  # fmt: skip
        assert [row["answer"] for row in found] == ["B", None, "Two words", "it is", None]
        assert [row["target"] for row in found] == ["B", "C", "two words", "it was", "A"]
        assert [row["score"] for row in found] == [100, 0, 100, 50, 0]
        assert [row["failure"] for row in found] == [None] * 4 + ["x.wav is silent"]
        assert [row["cut_seconds"] for row in found] == [0, 2.5, 0, 0, 0]

    def test_batches_that_name_no_task(self) -> None:
        found = score_batch({"keys": ["a"], "answers": ["Yes"]}, ["yes"], TASKS["question"])
        assert (found[0]["task"], found[0]["score"]) == ("question", 100)

    def test_an_unknown_task(self) -> None:
        with pytest.raises(UnknownNameError, match="'sett'"):
            rows({**BATCH, "task_names": ["sett"] * 4})


class TestSummary:
    def test_counts_and_means(self) -> None:
        found = summarize(rows())
        sed = found["tasks"]["audiomarathon-sed"]
        assert {name: sed[name] for name in ("n", "invalid", "failed", "cut", "cut_seconds", "type", "family")} == {
            "n": 3, "invalid": 1, "failed": 1, "cut": 1, "cut_seconds": 2.5, "type": "sound", "family": "acoustic",
        }  # fmt: skip
        assert sed["metric"] == "MacroF1"
        assert sed["score"] == pytest.approx(100 * (1 + 0 + 0) / 3)
        assert sed["accuracy"] == pytest.approx(1 / 3)
        asr = found["tasks"]["audiomarathon-asr"]
        assert (asr["score"], asr["value"], asr["corpus_wer"]) == (50, 0.5, 0.5)
        assert found["families"] == {"semantic": pytest.approx(75), "acoustic": pytest.approx(100 / 3)}
        assert found["types"] == {"semantic": pytest.approx(75), "sound": pytest.approx(100 / 3)}
        assert found["average"] == pytest.approx((100 / 3 + 50 + 100) / 3)
        assert found["average_by_sample"] == pytest.approx((100 / 3 * 3 + 50 + 100) / 5)

    def test_of_nothing(self) -> None:
        assert summarize([]) == {"tasks": {}, "types": {}, "families": {}, "average": 0, "average_by_sample": 0}

    def test_percent_of_an_unpruned_run(self) -> None:
        unpruned = summarize(rows(texts=["cat", "rain", "Two words", "it was"]))
        percent = percent_of(summarize(rows()), unpruned)
        assert percent["tasks"] == {
            "audiomarathon-asr": 50, "audiomarathon-sed": pytest.approx(50), "question": 100,
        }  # fmt: skip
        assert percent["average"] == pytest.approx(200 / 3)
        assert percent["families"] == {"semantic": 75, "acoustic": pytest.approx(50)}

    def test_of_a_score_of_zero_nothing_is_a_percentage(self) -> None:
        unpruned = summarize(rows(texts=["", "", "Two words", "it was"]))
        percent = percent_of(summarize(rows()), unpruned)
        assert set(percent["tasks"]) == {"audiomarathon-asr", "question"}
        shown = table({**summarize(rows()), "percent_of_unpruned": percent})
        assert [row["% of unpruned"] for row in shown[:3]] == ["100.0", "50.0", "-"]

    def test_another_number_of_samples(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"question: 0 samples, here 1; audiomarathon-sed: 2 samples, here 3"
        ):
            percent_of(summarize(rows()), summarize([row for row in rows() if row["key"] not in "35"]))

    def test_agreement_with_an_unpruned_run(self) -> None:
        def row(key: str, task: str, answer: str | None, text: str, failure: str | None = None) -> dict[str, Any]:
            return {"key": key, "task": task, "answer": answer, "text": text, "failure": failure}

        was = [
            row("a", "gender", "man", "a man"), row("b", "gender", None, "who knows"), row("c", "gender", None, "hm"),
            row("d", "gender", "man", "man"), row("e", "gender", None, "", "no file"), row("a", "asr", "so", "so"),
            row("f", "only failures", None, "", "no file"),
        ]  # fmt: skip
        now = [
            row("d", "gender", "woman", "woman"), row("c", "gender", None, "hm"), row("b", "gender", None, "dunno"),
            row("a", "gender", "man", "man, I think"), row("e", "gender", None, "", "no file"),
            row("a", "asr", "so what", "so what"), row("f", "only failures", None, "", "no file"),
        ]  # fmt: skip
        family = {"gender": "acoustic", "asr": "semantic", "only failures": "semantic"}
        results = {"tasks": {name: {"family": of} for name, of in family.items()}}
        assert agreement_with(now, was, results) == {
            "tasks": {"gender": 50, "asr": 0}, "families": {"acoustic": 50, "semantic": 0}, "average": 25,
        }  # fmt: skip
        with pytest.raises(ConfigurationError, match=r"1 are in one of the runs alone, the first is 'b' of gender"):
            agreement_with([r for r in now if r["key"] != "b"], was, results)

    def test_table(self) -> None:
        shown = table(summarize(rows()))
        assert [row["task"] for row in shown] == [
            "question", "audiomarathon-asr", "audiomarathon-sed", "semantic", "acoustic", "average",
            "average by sample",
        ]  # fmt: skip
        assert shown[2] == {
            "task": "audiomarathon-sed", "type": "sound", "n": "3", "score": "33.3", "metric": "MacroF1 0.333",
            "invalid": "1", "failed": "1", "cut": "1 (2 s)",
        }  # fmt: skip
        assert len({tuple(row) for row in shown}) == 1


@pytest.mark.parametrize(
    ("task", "answer", "texts"),
    [
        ("voice", "B", ("female", "Female.")),
        ("voice", "female", ("female", "Female.")),
        ("choice", "female", ("B", "female", "the voice is female")),
        ("choice", "B", ("B", "female")),
        ("audiomarathon-sgr", "B", ("B", "female")),
    ],
)
def test_letters_and_texts_of_options(task: str, answer: str, texts: Sequence[str]) -> None:
    """A right answer is read as the task reads answers, whether the batch names it or the module."""
    options = [["male", "female"]] * len(texts)
    batch = {"keys": list(texts), "answers": [answer] * len(texts), "options": options}
    for found in (
        score_batch(batch, texts, TASKS[task]),
        score_batch({**batch, "task_names": [task] * len(texts)}, texts, TASKS["transcription"]),
    ):
        assert [row["score"] for row in found] == [100] * len(texts)
    (wrong,) = score_batch({**batch, "keys": ["a"], "answers": [answer], "options": options[:1]}, ["male"], TASKS[task])
    assert wrong["score"] == 0


@pytest.mark.parametrize(
    ("task", "answer", "options", "target"),
    [
        ("choice", "C", ["C", "D", "E", "G"], "C"),  # of a record: the letter of "E"
        ("choice", "B", ["B", "A"], "B"),
        ("sound", "class 40", [f"class {number}" for number in range(50)], "class 40"),
        ("sound", "something else", ["cat", "dog"], "something else"),
    ],
)
def test_right_answers_are_read_once(task: str, answer: str, options: list[str], target: str) -> None:
    (row,) = score_batch({"keys": ["a"], "answers": [answer], "options": [options]}, ["?"], TASKS[task])
    assert row["target"] == target


def test_tasks_that_are_none() -> None:
    batch = {"keys": ["a"], "answers": ["dog"], "task_names": [None]}
    assert score_batch(batch, ["dog"], TASKS["sound"])[0]["score"] == 100


def test_a_task_in_the_place_of_one_here() -> None:
    """Samples that name it are read by it, as those that name none."""
    mine = replace(TASKS["sound"], parse=lambda text, options=(): text.split()[-1])
    batch = {"keys": ["a"], "answers": ["dog"], "task_names": ["sound"]}
    assert score_batch(batch, ["It is a dog"], mine)[0]["score"] == 100


def test_accents_are_written_in_two_ways() -> None:
    assert AnswerAccuracy.right("cafe\u0301", "Caf\u00e9")


class TestTaskScores:
    def test_over_batches_and_after_a_reset(self) -> None:
        scores = TaskScores()
        for _ in range(2):
            scores.update(rows()[:2])
            scores.update(rows()[2:])
            found = scores.compute()
            assert [row["key"] for row in found["samples"]] == ["4", "1", "2", "5", "3"]  # by task
            assert {name: found[name] for name in found if name != "samples"} == summarize(rows())
            assert "rank" not in found["samples"][0]
            scores.reset()

    def test_a_sample_that_two_processes_have_counts_once(self) -> None:
        scores = TaskScores()
        for rank, given in enumerate((rows()[:2], rows()[:1], rows()[1:])):  # as gathered
            scores.add([{**row, "rank": rank} for row in given])
        scores._update_count = 1
        assert len(scores.compute()["samples"]) == 5

    def test_what_one_process_has_is_kept(self) -> None:
        scores = TaskScores()
        scores.update(rows()[:1])
        scores.update(rows()[:1])
        scores.update([{**rows()[0], "key": ""}, {**rows()[0], "key": ""}])
        assert len(scores.compute()["samples"]) == 4

    def test_a_task_of_ones_own(self) -> None:
        mine = Task("mine", "sound", "What?", read_answer, AnswerAccuracy)
        given = score_batch({"keys": ["a"], "answers": ["x"]}, ["x"], mine)
        scores = TaskScores(mine)
        scores.update(given)
        assert scores.compute()["tasks"]["mine"]["score"] == 100
        with pytest.raises(UnknownNameError):
            summarize(given)

    def test_two_questions_of_one_key(self) -> None:
        """Loaders of others may call the sample what its recording is called."""
        scores = TaskScores()
        first, second = ({**rows()[0], "target": target, "rank": rank} for rank, target in enumerate(("x", "y")))
        scores.add([first, second, {**second, "rank": 2}])
        scores._update_count = 1
        assert [row["target"] for row in scores.compute()["samples"]] == ["x", "y"]

    def test_a_metric_that_does_not_say_which_way_it_goes(self) -> None:
        class Silent(AnswerAccuracy):
            higher_is_better = None  # type: ignore[assignment]

        mine = Task("mine", "sound", "What?", read_answer, Silent)
        with pytest.raises(ConfigurationError, match="Silent does not say which way it goes"):
            score_batch({"keys": ["a"], "answers": ["x"]}, ["x"], mine)

    def test_moves_with_a_module_in_half_precision(self) -> None:
        scores = TaskScores()
        scores.update(rows())
        torch.nn.ModuleList([scores]).to(torch.bfloat16)
        assert len(scores.compute()["samples"]) == 5


class TestMacroF1:
    @pytest.mark.parametrize("seed", range(5))
    def test_equals_scikit_learn(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        targets = random.choice(list("abcd"), 40).tolist()
        answers = random.choice(list("abcd"), 40).tolist()
        metric = MacroF1()
        metric.update(answers[:7], targets[:7])
        metric.update(answers[7:], targets[7:])
        assert metric.compute() == pytest.approx(f1_score(targets, answers, average="macro"))

    def test_unreadable_answers_are_misses_and_no_class(self) -> None:
        targets, answers = ["A", "A", "B", "B"], ["A", None, "B", None]
        metric = MacroF1()
        metric.update(answers, targets)
        want = f1_score(targets, [a or "?" for a in answers], average="macro", labels=["A", "B"])
        assert metric.compute() == pytest.approx(want) == pytest.approx(2 / 3)

    def test_a_class_that_is_only_answered_counts_as_0(self) -> None:
        metric = MacroF1()
        metric.update(["A", "C"], ["A", "A"])
        assert metric.compute() == pytest.approx((2 / 3 + 0) / 2)

    def test_case_and_nothing(self) -> None:
        metric = MacroF1()
        assert metric.compute() == 0
        metric.update(["a"], ["A"])
        assert metric.compute() == 1
        metric.reset()
        metric.update([None], ["A"])
        assert metric.compute() == 0


def test_word_error_rates() -> None:
    answers, targets = ["it is", None, "a b c d"], ["it was", "one two", "a"]
    mean, corpus = MeanWER(), CorpusWER()
    for metric in (mean, corpus):
        metric.update(answers[:1], targets[:1])
        metric.update(answers[1:], targets[1:])
    assert mean.compute() == pytest.approx((0.5 + 1 + 3) / 3)
    assert corpus.compute() == pytest.approx((1 + 2 + 3) / 5)


class TestReferencesWithoutAWord:
    @pytest.mark.parametrize("metric", [MeanWER, CorpusWER])
    @pytest.mark.parametrize("reference", ["", " ", "..."])
    def test_nothing_or_something_said(self, metric: Callable[[], Metric], reference: str) -> None:
        for said, want in (("", 0), (None, 0), ("a", 1), ("a b c", 1)):
            scored = metric()
            scored.update([said], [reference])
            assert scored.compute() == want

    def test_beside_others(self) -> None:
        mean, corpus = MeanWER(), CorpusWER()
        for metric in (mean, corpus):
            metric.update(["it is", "a b c", None], ["it was", "", ""])
        assert mean.compute() == pytest.approx((0.5 + 1 + 0) / 3)
        assert corpus.compute() == pytest.approx((1 + 3) / 2)

    @pytest.mark.parametrize("task", ["transcription", "audiomarathon-asr"])
    def test_rows_and_results_are_json(self, task: str) -> None:
        batch = {"keys": list("abcd"), "answers": ["", "...", "♪", ""], "task_names": [task] * 4}
        found = rows(batch, ["", "", "it was", "one two three"])
        assert [row["score"] for row in found] == [100, 100, 0, 0]
        scores = TaskScores()
        scores.update(found)
        results = json.loads(json.dumps(scores.compute(), allow_nan=False))["tasks"][task]
        assert results["value"] == (1 if task == "transcription" else 0.5)

    def test_more_errors_than_words_score_below_0(self) -> None:
        (row,) = rows({"keys": ["a"], "answers": ["it"], "task_names": ["transcription"]}, ["one two three"])
        assert row["score"] == -200


def test_string_match() -> None:
    metric = StringMatch()
    metric.update(["It is a dog, twice!", "hotdog", None, "a dog"], ["A dog", "dog", "dog", "..."])
    assert metric.compute() == 0.25


def test_packed_rows_count_once() -> None:
    """What a second process has heard again is left out; a key that one process has twice names two samples."""
    scores = PackedScores()
    scores.update(["a", "b"], 1.0, [["code", "language"], ["code"]], [True, True, False])
    scores.update(["a"], 2.0, [["code"]], [False])
    (heard,) = [row for row in scores.rows() if row[:2] == ["language", "a 1"]]
    scores.add([[*heard[:2], 0.0, 1, 1], ["sound", "c 0", 1.0, 1, 1]])  # of process one
    assert scores.compute() == pytest.approx({"code": 1 / 3, "language": 1.0, "loss": 1.25, "sound": 1.0})
    scores.reset()
    scores.update([], 0.0, [], [])
    assert scores.compute() == {}
