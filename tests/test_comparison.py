"""Statistics of a comparison, against plain loops and all possible resamples."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from headrouter_pl.comparison import (
    UNPRUNED,
    Method,
    evidence_recall,
    mean_over_tasks,
    paired_bootstrap,
    percent_of_unpruned,
    resample_weights,
    summarize,
)
from headrouter_pl.errors import ConfigurationError

TASKS = ["a", "b", "a", "a", "b"]


class TestEvidenceRecall:
    def test_against_sets(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(50):
            spans = [tuple(sorted(rng.integers(0, 45, 2).tolist())) for _ in range(3)]
            kept = np.flatnonzero(rng.random(40) < 0.3)
            evidence = {token for first, last in spans for token in range(first, min(last, 40))}
            want = len(evidence & set(kept.tolist())) / len(evidence) if evidence else None
            assert evidence_recall(kept, spans, 40) == want  # type: ignore[arg-type]

    def test_edges(self) -> None:
        assert evidence_recall([], [(0, 2)], 4) == 0
        assert evidence_recall([0, 1, 2, 3], [(1, 3)], 4) == 1
        assert evidence_recall([0], [], 4) is None
        assert evidence_recall([0], [(9, 12)], 4) is None  # after what was seen


class TestMeans:
    def test_every_task_counts_alike(self) -> None:
        values = [1.0, 0.0, 0.0, 0.5, 1.0]
        assert mean_over_tasks(values, TASKS) == pytest.approx((0.5 + 0.5) / 2)
        assert mean_over_tasks(values[:3], TASKS[:3]) == pytest.approx((0.5 + 0) / 2)
        np.testing.assert_allclose(mean_over_tasks(np.array([values, values]).T, TASKS), [0.5, 0.5])

    def test_percent(self) -> None:
        unpruned = [1, 1, 1, 0, 1]
        pruned = [1, 0, 0, 1, 1]
        assert percent_of_unpruned(pruned, unpruned, TASKS) == pytest.approx(100 * ((2 / 3) / (2 / 3) + 0.5) / 2)
        assert percent_of_unpruned(unpruned, unpruned, TASKS) == 100
        # A task that is never right has no share.
        assert percent_of_unpruned(pruned, [0, 1, 0, 0, 1], TASKS) == 50
        assert percent_of_unpruned(pruned, [0] * 5, TASKS) is None


class TestBootstrap:
    a = np.array([1, 0, 0.5, 1, 0])
    b = np.array([0, 0, 1, 0, 0.25])

    def every_resample(self) -> np.ndarray:
        """Differences of all equally likely resamples."""
        difference = self.a - self.b
        parts = [[i for i, task in enumerate(TASKS) if task == name] for name in "ab"]
        drawn = itertools.product(*(itertools.product(part, repeat=len(part)) for part in parts))
        return np.array([np.mean([difference[list(part)].mean() for part in draw]) for draw in drawn])

    def test_against_all_resamples(self) -> None:
        found = paired_bootstrap(self.a, self.b, TASKS)
        every = self.every_resample()
        assert len(every) == 27 * 4
        assert found.difference == pytest.approx(np.mean([(1 - 0.5 + 1) / 3, -0.25 / 2]))
        assert found.difference == pytest.approx(every.mean())
        np.testing.assert_allclose(found.ci95, np.quantile(every, (0.025, 0.975)), atol=0.05)
        p = 2 * min((every <= 1e-9).mean(), (every >= -1e-9).mean())
        assert 0.1 < p < 0.6
        assert found.p == pytest.approx(p, abs=0.02)

    def test_weights_are_resamples_within_tasks(self) -> None:
        weights = resample_weights(TASKS, resamples=3000)
        a, b = [i for i, t in enumerate(TASKS) if t == "a"], [i for i, t in enumerate(TASKS) if t == "b"]
        np.testing.assert_allclose(weights[:, a].sum(1), 0.5)
        np.testing.assert_allclose(weights[:, b].sum(1), 0.5)
        counts = weights[:, a] * 3 * 2
        np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
        np.testing.assert_allclose(counts.mean(0), 1, atol=0.06)
        np.testing.assert_array_equal(weights, resample_weights(TASKS, resamples=3000))
        assert (weights != resample_weights(TASKS, resamples=3000, seed=1)).any()

    def test_weights_of_groups_are_resamples_of_whole_groups(self) -> None:
        tasks, groups = ["a", "b", "a", "b", "a", "c"], ["x", "x", "y", "y", "z", "z"]
        weights = resample_weights(tasks, groups, resamples=3000)
        np.testing.assert_allclose(weights.sum(1), 1)
        counts = np.zeros((3000, 3))
        for task in "abc":
            part = [i for i, name in enumerate(tasks) if name == task]
            of_task = weights[:, part] / np.maximum(weights[:, part].sum(1, keepdims=True), 1e-9)
            if task == "a":  # one question of each group
                counts = of_task
        # Questions of one group come together, as often as it was drawn: b's are x and y in a's proportions.
        x, y = counts[:, 0], counts[:, 1]
        drawn = x + y > 0
        np.testing.assert_allclose(
            (weights[:, 1] / (weights[:, 1] + weights[:, 3]).clip(1e-9))[drawn], (x / (x + y).clip(1e-9))[drawn]
        )
        # Without z no c: the mean is then over the two other tasks.
        without = weights[:, 5] == 0
        assert 0.2 < without.mean() < 0.4  # (2/3)^3 = .30
        np.testing.assert_allclose(weights[without][:, [0, 2, 4]].sum(1), 1 / 2)
        np.testing.assert_allclose(weights[~without & drawn][:, 5], 1 / 3)

    def test_groups_that_go_together_are_less_sure(self) -> None:
        """Ten audios with ten questions each, whose answers differ by audio alone, are ten observations."""
        rng = np.random.default_rng(3)
        better = np.repeat((rng.random(10) < 0.6).astype(float), 10)
        groups = [str(i // 10) for i in range(100)]
        apart = paired_bootstrap(better, np.full(100, 0.5), ["a"] * 100)
        together = paired_bootstrap(
            better, np.full(100, 0.5), ["a"] * 100, weights=resample_weights(["a"] * 100, groups)
        )
        wide, narrow = (found.ci95[1] - found.ci95[0] for found in (together, apart))
        assert wide > 2.5 * narrow

    def test_pairing_matters(self) -> None:
        rng = np.random.default_rng(0)
        base = rng.integers(0, 2, 400).astype(float)
        better = np.where(rng.random(400) < 0.12, 1.0, base)  # never worse
        tasks = ["a", "b"] * 200
        paired = paired_bootstrap(better, base, tasks)
        apart = paired_bootstrap(better, rng.permutation(base), tasks)
        assert paired.p < 0.01
        assert paired.ci95[0] > 0
        assert apart.ci95[1] - apart.ci95[0] > 2 * (paired.ci95[1] - paired.ci95[0])

    def test_the_same_answers_do_not_differ(self) -> None:
        found = paired_bootstrap(self.a, self.a, TASKS)
        assert (found.difference, found.ci95, found.p) == (0, (0, 0), 1)
        # 0.1 + 0.2 - 0.3 is not zero in floats.
        assert paired_bootstrap([0.3, 0.3], [0.1 + 0.2, 0.3], ["a", "a"]).p == 1

    def test_p_is_right_under_no_difference(self) -> None:
        rng = np.random.default_rng(1)
        tasks = ["a"] * 60 + ["b"] * 40
        weights = resample_weights(tasks, resamples=1000)
        p = [paired_bootstrap(*rng.random((2, 100)), tasks, weights=weights).p for _ in range(400)]
        assert 0.02 < np.mean(np.array(p) < 0.05) < 0.1


METHODS = [
    Method("random", "random", seeds=(0, 1)),
    Method("routed", "headrouter", profile="generic", types={"semantic": "semantic", "voice": "acoustic"}),
]
RATIOS = (0.5, 0.1)


def answers(questions: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a run over questions of three tasks, two scenes a length."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(questions):
        task = ("code", "phrase", "gender")[number % 3]
        item = {
            "item": f"test/{number // 3:03}/{task}", "task": task, "type": "voice" if task == "gender" else "semantic",
            "seconds": (8.0, 60.0, 120.0)[number // 3 % 3],
        }  # fmt: skip
        for name, drawn, ratio in [
            (UNPRUNED, None, 1.0),
            *((m.name, drawn, ratio) for m in METHODS for drawn in m.seeds or (None,) for ratio in RATIOS),
        ]:
            valid = number < 3 or bool(rng.random() < 0.9)
            route = {"semantic": 0.3, "acoustic": 0.7} if name == "routed" else {}
            seconds = 1.0 if name == UNPRUNED else float(rng.random())
            rows.append(item | {
                "method": name, "seed": drawn, "keep_ratio": ratio, "applied_ratio": ratio + 0.01 * (ratio < 1),
                "text": ("yes", "no")[int(rng.random() < 0.3)],
                "right": valid and bool(number < 3 or rng.random() < 0.6), "valid": valid,
                "evidence_recall": None if number % 5 == 0 else float(rng.random()), "route": route,
                "prefill_seconds": 2 * seconds, "unpruned_seconds": 2.0,
            })  # fmt: skip
    return rows


def of(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


class TestSummarize:
    def test_tasks_against_plain_loops(self) -> None:
        rows = answers()
        figures = summarize(rows, METHODS, RATIOS, resamples=500)
        assert figures["questions"] == 12
        for name, ratio in ((UNPRUNED, 1.0), ("random", 0.5), ("random", 0.1), ("routed", 0.1)):
            for task, kind in (("code", "semantic"), ("phrase", "semantic"), ("gender", "voice")):
                given = of(rows, method=name, keep_ratio=ratio, task=task)
                full = of(rows, method=UNPRUNED, task=task)
                (row,) = of(figures["rows"], method=name, keep_ratio=ratio, task=task)
                accuracy = np.mean([g["right"] for g in given])
                assert row["type"] == kind
                assert row["n"] == 4
                assert row["accuracy"] == pytest.approx(accuracy, abs=1e-4)
                said = {f["item"]: f["text"] for f in full}
                same = np.mean([g["text"] == said[g["item"]] for g in given])
                assert row["agreement"] == pytest.approx(same, abs=1e-4)
                assert (same == 1) == (name == UNPRUNED)
                right = {f["item"]: f["right"] for f in full}
                seeds = len(given) / 4
                lost = sum(right[g["item"]] and not g["right"] for g in given) / seeds
                gained = sum(g["right"] and not right[g["item"]] for g in given) / seeds
                assert (row["lost"], row["gained"]) == (lost, gained)
                assert row["percent_of_unpruned"] == pytest.approx(
                    100 * accuracy / np.mean([f["right"] for f in full]), abs=0.01
                )
                assert row["applied_ratio"] == pytest.approx(ratio + 0.01 * (ratio < 1), abs=1e-4)
                assert row["invalid"] == pytest.approx(1 - np.mean([g["valid"] for g in given]), abs=1e-4)
                costs: dict[str, list[float]] = {}
                for g in given:
                    costs.setdefault(g["item"], []).append(g["prefill_seconds"] / 2)
                assert row["cost"] == pytest.approx(np.median([np.mean(c) for c in costs.values()]), abs=1e-4)
                recalls = [g["evidence_recall"] for g in given if g["evidence_recall"] is not None]
                assert row["evidence_recall"] == pytest.approx(np.mean(recalls), abs=1e-4)

    def test_means_over_tasks(self) -> None:
        figures = summarize(answers(), METHODS, RATIOS, resamples=500)
        for kind, tasks in (("semantic", 2), ("voice", 1), ("all", 3)):
            for name, ratio in ((UNPRUNED, 1.0), ("random", 0.5), ("routed", 0.1)):
                found = [
                    row for row in of(figures["rows"], method=name, keep_ratio=ratio)
                    if row["task"] != "mean" and kind in ("all", row["type"])
                ]  # fmt: skip
                (row,) = of(figures["rows"], method=name, keep_ratio=ratio, task="mean", type=kind)
                assert len(found) == tasks
                assert row["n"] == 4 * tasks
                for figure in ("accuracy", "agreement", "percent_of_unpruned", "evidence_recall"):
                    assert row[figure] == pytest.approx(np.mean([f[figure] for f in found]), abs=0.01)
                low, high = row["accuracy_band"]
                assert low <= row["accuracy"] <= high
                if name == UNPRUNED:
                    assert low == high == row["accuracy"]
                    assert row["percent_ci95"] == [100, 100]
                    assert row["cost"] == 1
                assert row["percent_ci95"][0] <= row["percent_of_unpruned"] <= row["percent_ci95"][1]
                assert len(row["percent_by_third"]) == 3
                low, high = row["percent_of_mean_ci95"]
                assert low <= row["percent_of_mean"] <= high
                full = next(
                    each["accuracy"] for each in figures["rows"]
                    if each["method"] == "unpruned" and (each["type"], each["task"]) == (row["type"], "mean")
                )  # fmt: skip
                assert row["percent_of_mean"] == pytest.approx(100 * row["accuracy"] / full, abs=0.05)

    def test_labels(self) -> None:
        figures = summarize(answers(), METHODS, RATIOS, resamples=20)
        (row,) = of(figures["rows"], method="routed", keep_ratio=0.1, task="mean", type="all")
        assert (row["scorer"], row["profile"], row["router"]) == ("headrouter", "generic", "true")
        (row,) = of(figures["rows"], method=UNPRUNED, task="mean", type="all")
        assert (row["scorer"], row["profile"], row["router"], row["keep_ratio"]) == (UNPRUNED, None, None, 1)
        assert Method("m", "headrouter", types={"semantic": "sound", "voice": "sound"}).routing == "fixed"
        assert Method("m", "headrouter", router="joint").routing == "joint"

    def test_lengths(self) -> None:
        figures = summarize(answers(), METHODS, RATIOS, resamples=20)
        assert {row["length_s"] for row in figures["lengths"]} == {8, 60, 120, "60-120"}
        (row,) = of(figures["lengths"], method="random", keep_ratio=0.1, type="all", length_s="60-120")
        assert row["n"] == 6
        given = [r for r in answers() if r["seconds"] >= 60 and r["method"] == "random" and r["keep_ratio"] == 0.1]
        accuracies = [np.mean([g["right"] for g in of(given, task=task)]) for task in ("code", "phrase", "gender")]
        assert row["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-4)

    def test_tests_are_paired_by_question(self) -> None:
        rows = answers(60)
        figures = summarize(rows, METHODS, RATIOS, tested=["routed"], resamples=2000)
        assert {(t["a"], t["b"], t["keep_ratio"], t["type"]) for t in figures["tests"]} == {
            ("routed", b, ratio, kind)
            for b in ("random", UNPRUNED) for ratio in RATIOS for kind in ("semantic", "voice", "all")
        }  # fmt: skip
        (found,) = of(figures["tests"], b="random", keep_ratio=0.1, type="semantic")
        names = [row["item"] for row in of(rows, method=UNPRUNED, type="semantic")]
        a, b = (
            [np.mean([r["right"] for r in of(rows, item=item, method=name, keep_ratio=0.1)]) for item in names]
            for name in ("routed", "random")
        )
        tasks, audios = ([name.rsplit("/", 1)[i] for name in names] for i in (1, 0))
        weights = resample_weights(tasks, audios)
        want = paired_bootstrap(a, b, tasks, weights=weights)
        assert found["n"] == 40
        assert found["difference"] == pytest.approx(want.difference, abs=1e-4)
        np.testing.assert_allclose(found["ci95"], want.ci95, atol=0.02)
        assert found["p"] == pytest.approx(want.p, abs=0.03)
        said = {row["item"]: row["text"] for row in of(rows, method=UNPRUNED)}
        a, b = (
            [
                np.mean([r["text"] == said[item] for r in of(rows, item=item, method=name, keep_ratio=0.1)])
                for item in names
            ]
            for name in ("routed", "random")
        )
        want = paired_bootstrap(a, b, tasks, weights=weights)
        assert found["agreement_difference"] == pytest.approx(want.difference, abs=1e-4)
        assert found["agreement_difference"] != found["difference"]
        np.testing.assert_allclose(found["agreement_ci95"], want.ci95, atol=0.02)
        assert found["agreement_p"] == pytest.approx(want.p, abs=0.03)

    def test_only_questions_that_all_have_answered(self) -> None:
        rows = answers()
        part = summarize(rows[:-1], METHODS, RATIOS, resamples=20)
        assert part["questions"] == 11
        assert part["rows"] == summarize([r for r in rows if r["item"] != rows[-1]["item"]], METHODS, RATIOS,
                                         resamples=20)["rows"]  # fmt: skip
        assert summarize(rows[:2], METHODS, RATIOS) == {
            "questions": 0, "rows": [], "lengths": [], "tests": [], "routes": [],
        }  # fmt: skip

    def test_routes(self) -> None:
        routes = summarize(answers(), METHODS, RATIOS, resamples=20)["routes"]
        assert [(route["method"], route["type"], route["n"]) for route in routes] == [
            ("routed", "semantic", 8), ("routed", "voice", 4),
        ]  # fmt: skip
        assert routes[0]["histogram"] == [0, 0, 0, 8, 0, 0, 0, 0, 0, 0] or routes[0]["histogram"][2] == 8
        assert routes[1]["mean"] == {"semantic": 0.3, "acoustic": 0.7}
        assert routes[1]["histogram"].index(4) in (6, 7)  # its family's


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "unpruned"}, "a name of its own"),
        ({"name": ""}, "a name of its own"),
        ({"types": {"voice": "voice"}, "router": "joint"}, "both types and a router"),
        ({"seeds": [1, 1]}, "seeds that differ"),
        ({"seeds": []}, "seeds that differ"),
    ],
)
def test_methods_that_contradict_themselves(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Method(**{"name": "m", "scorer": "random", **settings})
