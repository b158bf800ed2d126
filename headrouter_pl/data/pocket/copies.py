"""Recordings that are in two splits under two names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from headrouter_pl.data.pocket.splits import SPLITS

__all__ = ["copies_across_splits"]

_STEPS = 8  # of 16 bits: by so much, at most, one recording may differ from itself, converted or resampled twice


def copies_across_splits(recordings: Sequence[np.ndarray], splits: Sequence[str]) -> dict[int, int]:
    """Finds the recordings that another split holds, too, which hashes of files do not tell.

    Args:
        recordings: int16 ``[n]`` each.
        splits: Split of each. The one in the first of :data:`SPLITS` stays.

    Returns:
        Index of a recording to leave out -> index of the one that stays.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, samples in enumerate(recordings):
        by_length[len(samples)].append(index)
    found: dict[int, int] = {}
    for length, group in by_length.items():
        if len({splits[index] for index in group}) < 2:
            continue
        group.sort(key=lambda index: SPLITS.index(splits[index]))
        few = np.linspace(0, length - 1, min(length, 64)).astype(int)  # enough to tell most apart
        heads = np.stack([recordings[index][few] for index in group]).astype(np.int32)
        for at, index in enumerate(group):
            for other in np.flatnonzero((np.abs(heads[:at] - heads[at]) <= _STEPS).all(axis=1)):
                kept = group[other]
                if splits[kept] == splits[index] or kept in found:
                    continue
                if np.abs(recordings[kept].astype(np.int32) - recordings[index]).max() <= _STEPS:
                    found[index] = kept
                    break
    return found
