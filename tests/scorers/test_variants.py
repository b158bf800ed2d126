"""The scorers that benchmarks/pocket_variants.py tries, against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pocket_variants import (
    Closer,
    EverySecond,
    Flatter,
    FromAllTokens,
    LargestHead,
    LargestScout,
    MassBudget,
    MeanLog,
    SegmentFloor,
    Sharper,
    Unlike,
    WindowBudget,
    WithScout,
)
from torch import Tensor

from headrouter_pl.functional import select_tokens
from headrouter_pl.functional.routing import LOG_FLOOR
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.scorers import HeadRouterScorer, Probe, ScoringInputs, ScoutScorer

SEEN, COUNTS = (40, 25), (10, 6)


@pytest.fixture
def profile() -> HeadProfile:
    weights = torch.tensor([[0.7, -0.2, 0.5]])
    return HeadProfile("three heads", types=("semantic",), families=("semantic",), weights=weights, features="log")


def batch() -> ScoringInputs:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(SEEN)) < torch.tensor(SEEN)[:, None]
    attention = torch.rand(len(SEEN), 3, max(SEEN), generator=generator) * mask[:, None]
    keys = torch.randn(len(SEEN), max(SEEN), 4, generator=generator) * mask[..., None]
    return ScoringInputs(mask, torch.tensor(COUNTS), attention / attention.sum(-1, keepdim=True), keys=keys)


def kept(scores: Tensor, inputs: ScoringInputs) -> list[set[int]]:
    chosen = select_tokens(scores, inputs.audio_mask, inputs.counts)
    return [set(row.nonzero().flatten().tolist()) for row in chosen]


def test_the_largest_head_decides(profile: HeadProfile) -> None:
    inputs = batch()
    scores = LargestHead(profile, router="uniform").score(inputs)
    assert inputs.attention is not None
    for row, seen in enumerate(SEEN):
        for i in range(seen):
            first, _, third = inputs.attention[row, :, i].tolist()
            assert scores[row, i].item() == pytest.approx(max(0.7 * first, 0.5 * third))


def test_each_segment_keeps_its_best(profile: HeadProfile) -> None:
    inputs = batch()
    inputs.counts = torch.tensor([20, 20])  # one token of each of ten segments, and ten more
    importance = HeadRouterScorer(profile, router="uniform").score(inputs)
    chosen = kept(SegmentFloor(profile, router="uniform").score(inputs), inputs)
    for row, seen in enumerate(SEEN):
        ranked = sorted(range(seen), key=lambda i: -importance[row, i].item())
        best = {max((i for i in range(seen) if i * 10 // seen == s), key=ranked[::-1].index) for s in range(10)}
        assert chosen[row] == best | set([i for i in ranked if i not in best][: 20 - len(best)])


def test_strong_heads_count_for_more_or_less(profile: HeadProfile) -> None:
    inputs = batch()
    for made, weights in ((Sharper, [0.49, -0.04, 0.25]), (Flatter, [0.7**0.5, -(0.2**0.5), 0.5**0.5])):
        made(profile, router="uniform").score(inputs)
        assert inputs.head_weights is not None
        wanted = torch.tensor(weights) / torch.tensor(weights).abs().sum()
        torch.testing.assert_close(inputs.head_weights, wanted.expand(len(SEEN), -1))


def test_types_come_closer() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.2, -0.8]])
    profile = HeadProfile("two", ("what", "how"), ("semantic", "acoustic"), weights=weights, features="log")
    scorer = Closer(profile)
    wanted = torch.tensor([[1.6, -0.4], [0.8, -1.2]])  # each plus the mean of both
    torch.testing.assert_close(scorer.profile.weights, wanted / 2)
    assert profile.weights is weights


def test_scores_and_the_plain_scout_pass_count_alike(profile: HeadProfile) -> None:
    profile = replace(profile, weights=torch.tensor([[0.3, -0.2, 0.1, 0.2, 0.1, 0.1]]), layers=(4, 7), pool=4)
    inputs = batch()
    assert inputs.attention is not None
    inputs.attention = torch.cat([inputs.attention, inputs.attention.square()], 1)  # of layer 4, and of layer 7
    importance = HeadRouterScorer(profile, router="uniform").score(inputs)
    scores = WithScout(profile, router="uniform").score(inputs)
    for row, seen in enumerate(SEEN):
        plain = inputs.attention[row, 3:, :seen].mean(0)
        parts = [(part - part.mean()) / part.std(correction=0) for part in (importance[row, :seen], plain)]
        torch.testing.assert_close(scores[row, :seen], parts[0] + parts[1])


def test_each_window_keeps_its_share(profile: HeadProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WindowBudget, "window", 15)
    inputs = batch()
    inputs.counts = torch.tensor([8, 5])  # a fifth of windows of 15, 15 and 10 tokens, and of 15 and 10
    importance = HeadRouterScorer(profile, router="uniform").score(inputs)
    chosen = kept(WindowBudget(profile, router="uniform").score(inputs), inputs)
    for row, windows in enumerate([((0, 15), (15, 30), (30, 40)), ((0, 15), (15, 25))]):
        best = [sorted(range(*w), key=lambda i: -importance[row, i].item())[: (w[1] - w[0]) // 5] for w in windows]
        assert chosen[row] == {i for part in best for i in part}


def test_of_alike_tokens_one(profile: HeadProfile) -> None:
    inputs = batch()
    importance = HeadRouterScorer(profile, router="uniform").score(inputs)
    chosen = kept(Unlike(profile, router="uniform").score(inputs), inputs)
    assert inputs.keys is not None
    for row, (seen, count) in enumerate(zip(SEEN, COUNTS, strict=True)):
        keys = inputs.keys[row, :seen] - inputs.keys[row, :seen].mean(0)
        cosine = torch.nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1)
        value = importance[row, :seen]
        value = (value - value.mean()) / value.std()
        taken: list[int] = []
        while len(taken) < count:
            worth = {
                i: value[i].item() - max([0.0, *(cosine[i, j].item() for j in taken)])
                for i in range(seen)
                if i not in taken
            }
            taken.append(max(worth, key=lambda i: worth[i]))
        assert chosen[row] == set(taken)


def test_ways_to_read_a_plain_scout_pass() -> None:
    inputs = batch()
    assert inputs.attention is not None
    assert FromAllTokens(pool=2).probe == Probe(rotary=True, queries="last", keys="all", pool=2)
    mean, logs, largest, second = (
        made().score(inputs) for made in (ScoutScorer, MeanLog, LargestScout, EverySecond)
    )  # fmt: skip
    for row, seen in enumerate(SEEN):
        for i in range(seen):
            heads = inputs.attention[row, :, i].tolist()
            assert largest[row, i].item() == max(heads)
            assert second[row, i].item() == pytest.approx(mean[row, i].item() * (0.5 if i % 2 else 1))
            geometric = sum(math.log(seen * a + LOG_FLOOR) for a in heads) / len(heads)
            assert logs[row, i].item() == pytest.approx(geometric, rel=1e-5)


def test_a_budget_that_depends_on_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MassBudget, "mass", 0.5)
    inputs = batch()
    importance = MassBudget().score(inputs)
    for row, seen in enumerate(SEEN):
        ranked = sorted(importance[row, :seen].tolist(), reverse=True)
        count = int(inputs.counts[row])
        assert sum(ranked[:count]) >= 0.5 * sum(ranked) > sum(ranked[: count - 1])
