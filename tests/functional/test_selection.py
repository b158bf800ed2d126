"""How many tokens are kept, and which, against plain Python."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrouter_pl.functional import keep_counts, select_tokens, spread_evenly

torch.set_num_threads(1)

COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.floats(1e-9, 1))
def test_ratio(seen: list[int], ratio: float) -> None:
    kept = keep_counts(torch.tensor(seen), keep_ratio=ratio)
    assert kept.dtype == torch.long
    assert kept.tolist() == [min(n, max(1, round(ratio * n))) for n in seen]
    assert all((k > 0) == (n > 0) for k, n in zip(kept.tolist(), seen, strict=True))


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(1, 20_000))
def test_tokens(seen: list[int], budget: int) -> None:
    assert keep_counts(torch.tensor(seen), keep_tokens=budget).tolist() == [min(n, budget) for n in seen]


@pytest.mark.parametrize(
    ("ratio", "seen", "kept"),
    [
        (0.35, 10, 4),
        (0.25, 10, 2),
        (0.45, 10, 4),
        (0.3, 10, 3),
        (0.7, 150, 105),
        (1e-6, 9, 1),
        (1.0, 7, 7),
        (0.5, 0, 0),
        (0.7, 45, 31),
    ],
)
def test_rounding(ratio: float, seen: int, kept: int) -> None:
    """0.35 * 10 and 0.45 * 10 are ties, and go to the even number; 0.7 * 45 is 31.499999999999996, as in Python."""
    assert keep_counts(torch.tensor([seen]), keep_ratio=ratio).item() == kept


def test_exactly_one_of_ratio_and_tokens() -> None:
    for given_ in ({}, {"keep_ratio": 0.5, "keep_tokens": 3}):
        with pytest.raises(ValueError, match="exactly one"):
            keep_counts(torch.tensor([3]), **given_)  # type: ignore[arg-type]


@pytest.mark.parametrize("given_", [{"keep_tokens": 0}, {"keep_tokens": -1}, {"keep_ratio": 0.0}, {"keep_ratio": 1.01}])
def test_out_of_range(given_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given_))):
        keep_counts(torch.tensor([3]), **given_)  # type: ignore[arg-type]


VALUES = st.sampled_from([-torch.inf, -3e38, -1.0, 0.0, 0.25, 0.5, torch.inf])


@st.composite
def selections(draw: st.DrawFn) -> tuple[list[list[float]], list[list[bool]], list[int]]:
    width = draw(st.integers(1, 8))
    rows = draw(st.integers(1, 3))
    importance = [draw(st.lists(VALUES, min_size=width, max_size=width)) for _ in range(rows)]
    mask = [draw(st.lists(st.booleans(), min_size=width, max_size=width)) for _ in range(rows)]
    return importance, mask, [draw(st.integers(0, sum(row))) for row in mask]


@settings(max_examples=300, deadline=None)
@given(selections())
def test_the_most_important_and_of_equals_the_earlier(
    case: tuple[list[list[float]], list[list[bool]], list[int]],
) -> None:
    importance, mask, counts = case
    kept = select_tokens(torch.tensor(importance), torch.tensor(mask), torch.tensor(counts))
    lowest = torch.finfo(torch.float32).min
    for b, count in enumerate(counts):
        true = [j for j in range(len(mask[b])) if mask[b][j]]
        best = sorted(true, key=lambda j: (-max(importance[b][j], lowest), j))[:count]
        assert kept[b].nonzero().flatten().tolist() == sorted(best)


def test_padding_is_never_kept() -> None:
    mask = torch.tensor([[False, True, True]])
    for junk in (torch.inf, torch.nan):
        kept = select_tokens(torch.tensor([[junk, 0.1, 0.2]]), mask, torch.tensor([1]))
        assert kept.tolist() == [[False, False, True]]


def test_nan_ranks_above_everything() -> None:
    """As torch sorts it; a model that computes NaN keeps the right number of tokens, in time order."""
    full = torch.ones(1, 4, dtype=torch.bool)
    kept = select_tokens(torch.tensor([[1.0, torch.nan, 2.0, torch.inf]]), full, torch.tensor([1]))
    assert kept.tolist() == [[False, True, False, False]]
    kept = select_tokens(torch.full((1, 4), torch.nan), full, torch.tensor([2]))
    assert kept.tolist() == [[True, True, False, False]]


def test_ties_of_a_long_clip_go_to_the_earlier() -> None:
    """Sorts that are not stable keep the order of short rows all the same."""
    importance = (torch.arange(3000) % 3)[None].float()
    kept = select_tokens(importance, torch.ones(1, 3000, dtype=torch.bool), torch.tensor([1500]))
    wanted = [j for j in range(3000) if j % 3 == 2 or (j % 3 == 1 and j < 1500)]
    assert kept[0].nonzero().flatten().tolist() == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 70))
def test_spread_evenly(candidates: list[bool], count: int) -> None:
    places = [j for j, candidate in enumerate(candidates) if candidate]
    (marked,) = spread_evenly(torch.tensor([candidates]), torch.tensor([count])).tolist()
    kept = [places.index(j) for j, mark in enumerate(marked) if mark]
    assert len(kept) == min(count, len(places))
    gaps = [b - a for a, b in pairwise(kept)]
    assert not gaps or max(gaps) - min(gaps) <= 1
