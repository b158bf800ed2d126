"""Means over tasks of what methods make of the same questions, and how sure their differences are. numpy alone.

A mean over tasks weighs every task alike, however many questions it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000

Floats = NDArray[np.float64]


def mean_over_tasks(values: ArrayLike, tasks: Sequence[str]) -> Floats:
    """Mean over tasks of the mean of each task.

    Args:
        values: float ``[n, ...]``, of n questions.
        tasks: Their tasks.

    Returns:
        float ``[...]``.
    """
    return _of_tasks(np.asarray(values, dtype=float), tasks).mean(0)


def percent_of_unpruned(pruned: ArrayLike, unpruned: ArrayLike, tasks: Sequence[str]) -> float | None:
    """Mean over tasks of pruned accuracy / unpruned accuracy, in percent.

    A task that the unpruned model never gets right has no such share, and is left out.

    Args:
        pruned: float ``[n]``, 1 where a question was answered right; shares, over several seeds.
        unpruned: float ``[n]``, the same without pruning.
        tasks: Tasks of the n questions.

    Returns:
        None if every task was left out.

    Example:
        >>> percent_of_unpruned([1, 0, 1], [1, 1, 1], ["a", "a", "b"])
        75.0
    """
    of_pruned, of_full = (_of_tasks(np.asarray(values, dtype=float), tasks) for values in (pruned, unpruned))
    known = of_full > 0
    return float(100 * (of_pruned[known] / of_full[known]).mean()) if known.any() else None


def resample_weights(
    tasks: Sequence[str], groups: Sequence[str] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Weights of n questions in bootstrap resamples.

    One set of weights for all methods keeps their resamples paired.

    Args:
        tasks: Tasks of the questions.
        groups: What is drawn with replacement, with all of its questions: the audio of each. A task of which nothing
            was drawn is missing from that resample's mean. None draws questions, within each task.
        resamples: How many.
        seed: Of the draw.

    Returns:
        float ``[resamples, n]``: ``weights @ values`` are the means over tasks of the resampled values.
    """
    rng = np.random.default_rng(seed)
    parts = parts_of(tasks)
    counts = np.empty((resamples, len(tasks)))
    if groups is None:
        for part in parts.values():
            counts[:, part] = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=resamples)
    else:
        of_group = list(parts_of(groups).values())
        drawn = rng.multinomial(len(of_group), np.full(len(of_group), 1 / len(of_group)), size=resamples)
        for number, part in enumerate(of_group):
            counts[:, part] = drawn[:, [number]]
    there = np.zeros((resamples, 1))
    for part in parts.values():
        total = counts[:, part].sum(1, keepdims=True)
        there += total > 0
        counts[:, part] /= np.maximum(total, 1)
    return counts / there


@dataclass(frozen=True)
class Difference:
    """A difference of means over tasks.

    Attributes:
        difference: a - b.
        ci95: Its 95 % bootstrap interval.
        p: Two-sided, ``2 (r + 1) / (R + 1)`` of R resamples, r of them on the rarer side of zero or at it; 1 at most.
    """

    difference: float
    ci95: tuple[float, float]
    p: float


def difference_of(found: float, drawn: Floats) -> Difference:
    """A difference, with its resamples ``[R]``."""
    # Rounded: sums that are zero on paper are not, in floats, and zero counts on both sides.
    drawn = np.round(drawn, 12)
    low, high = np.quantile(drawn, (0.025, 0.975))
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))  # never zero: no more than that can be known of so many draws
    return Difference(found, (float(low), float(high)), p)


def resample(values: Floats, unpruned: Floats, tasks: Sequence[str], weights: Floats) -> tuple[Floats, Floats]:
    """Resamples of many methods at once.

    Args:
        values: ``[n, C]`` of n questions under C methods.
        unpruned: ``[n]``.
        tasks: Tasks of the questions.
        weights: ``[R, n]``, of :func:`resample_weights`.

    Returns:
        Means over tasks, and percents of unpruned (NaN where no task has one), both ``[R, C]``.
    """
    shape = len(weights), values.shape[1]
    means, shares, known = np.zeros(shape), np.zeros(shape), np.zeros((len(weights), 1))
    for part in parts_of(tasks).values():
        of_task = weights[:, part]
        pruned, full = of_task @ values[part], (of_task @ unpruned[part])[:, None]
        means += pruned
        # Both sides have the same weights, which cancel out.
        shares += np.divide(pruned, full, out=np.zeros(shape), where=full > 0)
        known += full > 0
    percents = np.divide(100 * shares, known, out=np.full(shape, np.nan), where=known > 0)
    return means, percents


def parts_of(tasks: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The numbers of the questions of each task."""
    names = np.asarray(tasks)
    return {name: np.flatnonzero(names == name) for name in dict.fromkeys(tasks)}


def _of_tasks(values: Floats, tasks: Sequence[str]) -> Floats:
    return np.array([values[part].mean(0) for part in parts_of(tasks).values()])
