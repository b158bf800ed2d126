"""Means over tasks and the bootstrap, against plain loops and all possible resamples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from paired import paired_bootstrap

from headrouter_pl.statistics import mean_over_tasks, percent_of_unpruned, resample_weights

TASKS = ["a", "b", "a", "a", "b"]


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
