"""Segmentwise, DART and the oracle, each against a plain loop over its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.functional import select_tokens
from headrouter_pl.scorers import (
    DartScorer,
    FastVScorer,
    OracleScorer,
    Scorer,
    ScoringInputs,
    SegmentwiseScorer,
    StrideScorer,
    get_scorer,
)

torch.set_num_threads(1)


def inputs_of(seen: list[int], counts: list[int], seed: int = 0, pad: int = 0) -> ScoringInputs:
    """Attention and keys of samples that are the same whatever the batch; padding is full of large numbers."""
    width = max(seen) + pad
    mask = torch.arange(width) < torch.tensor(seen)[:, None]
    attention, keys = torch.full((len(seen), 3, width), 50.0), torch.full((len(seen), width, 6), 50.0)
    for row, n in enumerate(seen):
        generator = torch.Generator().manual_seed(1000 * seed + n)
        attention[row, :, :n] = torch.rand(3, n, generator=generator).softmax(-1)
        keys[row, :n] = torch.randn(n, 6, generator=generator)
    return ScoringInputs(mask, torch.tensor(counts), attention, keys=keys)


def kept_by(scorer: Scorer, inputs: ScoringInputs) -> list[list[int]]:
    kept = select_tokens(scorer.score(inputs), inputs.audio_mask, inputs.counts)
    return [row.nonzero().flatten().tolist() for row in kept]


@st.composite
def budgets(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    seen = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    return seen, [draw(st.integers(1, n)) for n in seen]


def best_of_segments(attention: Tensor, count: int, segments: int) -> list[int]:
    """Top tokens of each segment, then the best of the rest, for one sample."""
    scores = attention.mean(0).tolist()
    n = len(scores)
    chosen: list[int] = []
    for s in range(segments):
        members = [j for j in range(n) if j * segments // n == s]
        chosen += sorted(members, key=lambda j: (-scores[j], j))[: count // segments]
    rest = sorted(set(range(n)) - set(chosen), key=lambda j: (-scores[j], j))
    return sorted(chosen + rest[: count - len(chosen)])


@settings(max_examples=150, deadline=None)
@given(budgets(), st.integers(1, 12), st.integers(0, 3))
def test_segmentwise(budget: tuple[list[int], list[int]], segments: int, seed: int) -> None:
    seen, counts = budget
    inputs = inputs_of(seen, counts, seed, pad=seed)
    assert inputs.attention is not None
    wanted = [best_of_segments(inputs.attention[b, :, :n], counts[b], segments) for b, n in enumerate(seen)]
    assert kept_by(SegmentwiseScorer(segments), inputs) == wanted


def test_segmentwise_leaves_no_segment_out() -> None:
    inputs = inputs_of([40], [12])
    assert inputs.attention is not None
    inputs.attention[0, :, :10] += 1
    segments = {
        type(scorer): [sum(j // 10 == s for j in kept_by(scorer, inputs)[0]) for s in range(4)]
        for scorer in (SegmentwiseScorer(4), FastVScorer())
    }
    assert segments[SegmentwiseScorer] == [3, 3, 3, 3]
    assert segments[FastVScorer][0] == 10


def unlike_the_pivots(keys: Tensor, count: int, pivots: int) -> list[int]:
    """DART's choice for one sample, one token at a time."""
    n = len(keys)
    norms = keys.abs().sum(1).tolist()
    chosen = sorted(range(n), key=lambda j: (-norms[j], j))[: min(pivots, n)]
    stars = list(chosen)
    if count <= len(stars):
        return sorted(stars[:count])
    units = keys.double() / keys.double().norm(dim=1, keepdim=True)
    similarity = (units @ units.T).tolist()
    share = (count - len(stars)) // len(stars)
    for pivot in stars:
        left = [j for j in range(n) if j not in chosen]
        chosen += sorted(left, key=lambda j: (similarity[pivot][j], j))[:share]
    left = [j for j in range(n) if j not in chosen]
    nearest = {j: max(similarity[pivot][j] for pivot in stars) for j in left}
    return sorted(chosen + sorted(left, key=lambda j: (nearest[j], j))[: count - len(chosen)])


@settings(max_examples=150, deadline=None)
@given(budgets(), st.integers(1, 9), st.integers(0, 3))
def test_dart(budget: tuple[list[int], list[int]], pivots: int, seed: int) -> None:
    seen, counts = budget
    inputs = inputs_of(seen, counts, seed, pad=seed)
    assert inputs.keys is not None
    wanted = [unlike_the_pivots(inputs.keys[b, :n], counts[b], pivots) for b, n in enumerate(seen)]
    assert kept_by(DartScorer(pivots), inputs) == wanted


def test_dart_reads_nothing_back_from_the_device() -> None:
    """Tensors on "meta" have no values that could be read."""
    mask, keys = torch.ones(2, 40, dtype=torch.bool, device="meta"), torch.ones(2, 40, 6, device="meta")
    scores = DartScorer().score(ScoringInputs(mask, torch.ones(2, dtype=torch.long, device="meta"), keys=keys))
    assert scores.shape == (2, 40)


def test_dart_keeps_one_of_many_alike() -> None:
    inputs = inputs_of([30], [6])
    keys = torch.eye(6)[torch.arange(30) % 3] + 0.01 * torch.arange(30)[:, None] % 0.07
    keys[29] = 9 * torch.eye(6)[5]
    inputs.keys = keys[None]
    kept = kept_by(DartScorer(1), inputs)[0]
    assert 29 in kept
    assert not torch.allclose(keys[kept[0]], keys[kept[1]])


@pytest.mark.parametrize("name", ["segmentwise", "dart"])
def test_batch_and_padding_change_nothing(name: str) -> None:
    seen, counts = [40, 3, 17], [12, 2, 9]
    together = get_scorer(name).score(inputs_of(seen, counts, pad=5))
    for row, (n, count) in enumerate(zip(seen, counts, strict=True)):
        alone = get_scorer(name).score(inputs_of([n], [count]))[0]
        torch.testing.assert_close(alone, together[row, :n], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["segmentwise", "dart"])
def test_no_host_device_sync(name: str) -> None:
    """Meta tensors hold no values, so that whatever would read one raises."""
    inputs: Any = inputs_of([9, 5], [4, 2])
    for part in ("audio_mask", "counts", "attention", "keys"):
        setattr(inputs, part, getattr(inputs, part).to("meta"))
    assert get_scorer(name).score(inputs).shape == (2, 9)


@pytest.mark.parametrize("make", [SegmentwiseScorer, DartScorer])
def test_counts_below_one_are_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be at least 1, got 0"):
        make(0)


def oracle(*evidence: list[tuple[int, int]]) -> OracleScorer:
    scorer = OracleScorer()
    scorer.evidence = evidence
    return scorer


def test_oracle_keeps_evidence_then_a_stride() -> None:
    inputs = inputs_of([20, 10, 6], [8, 4, 3], pad=2)
    kept = kept_by(oracle([(4, 6), (10, 13)], [], [(0, 6)]), inputs)
    assert {4, 5, 10, 11, 12} < set(kept[0])
    assert kept[0] == [4, 5, 6, 10, 11, 12, 14, 19]  # every fifth of the other fifteen
    assert kept[1] == kept_by(StrideScorer(), inputs)[1]
    assert kept[2] == [1, 3, 5]  # every other one of the evidence


def test_oracle_counts_overlapping_spans_once() -> None:
    assert kept_by(oracle([(2, 6), (4, 8)]), inputs_of([12], [6])) == [[2, 3, 4, 5, 6, 7]]


def test_oracle_of_repeated_samples() -> None:
    inputs = inputs_of([8, 8, 8, 8], [2, 2, 2, 2])
    assert kept_by(oracle([(0, 2)], [(5, 7)]), inputs) == [[0, 1], [0, 1], [5, 6], [5, 6]]


@pytest.mark.parametrize(
    ("evidence", "match"),
    [
        (None, "was given none"),
        ([], "was given of 0 samples"),
        ([[], [], []], "each of the batch's 2 samples, and was given of 3"),
        ([[(0, 2)], [(3, 6)]], r"evidence \(3, 6\) of sample 1 does not lie in its 5 audio tokens"),
        ([[(-1, 2)], []], r"evidence \(-1, 2\) of sample 0"),
        ([[(3, 2)], []], r"evidence \(3, 2\) of sample 0"),
    ],
)
def test_oracle_without_fitting_evidence(evidence: Any, match: str) -> None:
    scorer = OracleScorer()
    scorer.evidence = evidence
    with pytest.raises(HeadRouterError, match=match):
        scorer.score(inputs_of([7, 5], [2, 2]))
