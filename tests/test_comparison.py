"""Figures of a comparison, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from paired import paired_bootstrap

from headrouter_pl.cli.method_runner import build_scorer
from headrouter_pl.comparison import UNPRUNED, Method, evidence_recall, summarize
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.routers import ROUTERS
from headrouter_pl.scorers import SCORERS
from headrouter_pl.statistics import resample_weights

METHODS = [
    Method("random", "random", seeds=(0, 1)),
    Method("routed", "headrouter", profile="generic", types={"semantic": "semantic", "voice": "acoustic"}),
]
RATIOS = (0.5, 0.1)


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
        (row,) = of(figures["rows"], method="random", keep_ratio=0.1, task="mean", type="all")
        assert row["router"] is None
        assert Method("m", "headrouter", router="joint").routing == "joint"

    @pytest.mark.parametrize(
        ("scorer", "given"),
        [
            *((scorer, {}) for scorer in SCORERS),
            ("headrouter", {"profile": "sharp"}),
            ("headrouter", {"router": "prompt"}),
            ("headrouter", {"init_args": {"router": "uniform"}}),
        ],
    )
    def test_the_router_is_the_one_at_work(self, scorer: str, given: dict[str, Any]) -> None:
        method = Method("m", scorer, **given)
        router = getattr(build_scorer(method, None), "router", None)
        assert method.routing == next((name for name, kind in ROUTERS.items() if type(router) is kind), None)
        assert (method.routing is None) == (scorer != "headrouter")

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
