"""Recordings held by two splits."""

from __future__ import annotations

import numpy as np
import pytest

from headrouter_pl.data.pocket.copies import copies_across_splits

RNG = np.random.default_rng(0)
ONE, OTHER = (RNG.integers(-9000, 9000, 4000).astype(np.int16) for _ in range(2))


def test_the_one_of_the_split_that_comes_first_stays() -> None:
    recordings = [ONE, OTHER, ONE, OTHER, ONE]
    assert copies_across_splits(recordings, ["test", "test", "train", "validation", "validation"]) == {0: 2, 4: 2, 1: 3}


def test_copies_within_a_split_stay() -> None:
    assert copies_across_splits([ONE, ONE, OTHER, OTHER], ["test", "test", "train", "train"]) == {}
    assert copies_across_splits([ONE, ONE, ONE], ["sealed"] * 3) == {}


@pytest.mark.parametrize(("steps", "found"), [(8, {1: 0}), (9, {})])
def test_roundings_are_no_difference(steps: int, found: dict[int, int]) -> None:
    again = ONE.copy()
    again[2000] += steps  # a sample that the first look does not take
    assert copies_across_splits([ONE, again], ["train", "test"]) == found


def test_no_overflow_and_other_lengths() -> None:
    loud = np.full(100, 32767, np.int16)
    assert copies_across_splits([loud, -loud, loud[1:]], ["train", "test", "test"]) == {}


def test_what_is_left_out_is_no_model_for_others() -> None:
    """C is near to B, which is near to A; A and C are not near."""
    near = [ONE, ONE + 6, ONE + 12]
    assert copies_across_splits(near, ["train", "validation", "test"]) == {1: 0}
