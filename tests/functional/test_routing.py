"""Selectivity, gates and importance against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrouter_pl.functional import (
    gaussian_log_gates,
    log_attention,
    selectivity,
    smooth_over_time,
    token_importance,
)

torch.set_num_threads(1)

ROWS = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12).filter(lambda row: sum(row) > 1e-3)


def _attention(row: list[float]) -> list[float]:
    return [value / sum(row) for value in row]


def _selectivity(row: list[float]) -> float:
    if len(row) < 2:
        return 0.0
    return 1 + sum(a * math.log(a) for a in row if a > 0) / math.log(len(row))


def _full(n: int) -> Tensor:
    return torch.ones(1, n, dtype=torch.bool)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_selectivity_is_one_minus_normalised_entropy(row: list[float]) -> None:
    attention = _attention(row)
    value = selectivity(torch.tensor([attention]), _full(len(row))).item()
    assert 0 <= value <= 1
    assert value == pytest.approx(_selectivity(attention), abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.lists(st.booleans(), max_size=8))
def test_selectivity_does_not_see_padding(row: list[float], padding: list[bool]) -> None:
    attention = _attention(row)
    before, after = sum(padding), len(padding) - sum(padding)
    padded = torch.tensor([[9.0] * before + attention + [9.0] * after])
    mask = torch.tensor([[False] * before + [True] * len(row) + [False] * after])
    alone = selectivity(torch.tensor([attention]), _full(len(row)))
    torch.testing.assert_close(selectivity(padded, mask), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 150, 7500])
def test_selectivity_of_uniform_attention_is_zero(n: int) -> None:
    assert selectivity(torch.full((1, 3, n), 1 / n), _full(n)[:, None]).abs().max() < 1e-5


@pytest.mark.parametrize("n", [2, 3, 7500])
def test_selectivity_of_one_token_is_one(n: int) -> None:
    attention = torch.zeros(1, n)
    attention[0, n // 2] = 1
    assert selectivity(attention, _full(n)).item() == 1


@pytest.mark.parametrize("n", [0, 1])
def test_selectivity_without_a_choice_is_zero(n: int) -> None:
    mask = torch.arange(4)[None] < n
    assert selectivity(mask.float(), mask).item() == 0


def test_selectivity_of_a_batch_with_heads() -> None:
    attention = torch.rand(2, 3, 5)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None]
    attention = attention.masked_fill(~mask, 0)
    attention = attention / attention.sum(-1, keepdim=True)
    value = selectivity(attention, mask)
    for b, n in enumerate((5, 3)):
        for h in range(3):
            assert value[b, h].item() == pytest.approx(_selectivity(attention[b, h, :n].tolist()), abs=1e-5)


# 30 rows: torch.cdist would switch to its matmul form there.
@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 5, 30]), st.integers(1, 40), st.integers(1, 4), st.sampled_from([1e-3, 0.1, 2.0]))
def test_gates_equal_the_formula(batch: int, heads: int, types: int, bandwidth: float) -> None:
    gen = torch.Generator().manual_seed(batch * heads * types)
    seen = torch.rand(batch, heads, generator=gen)
    centroids = seen[:1] + 1e-2 * torch.rand(types, heads, generator=gen)
    gates = gaussian_log_gates(seen, centroids, bandwidth)
    assert gates.shape == (batch, types)
    for b in range(batch):
        for t in range(types):
            distance = sum((float(seen[b, p]) - float(centroids[t, p])) ** 2 for p in range(heads))
            assert gates[b, t].item() == pytest.approx(-distance / (2 * bandwidth**2), rel=1e-4, abs=1e-6)


def test_gates_do_not_depend_on_the_batch() -> None:
    seen, centroids = torch.rand(40, 32), torch.rand(3, 32)
    alone = torch.cat([gaussian_log_gates(row, centroids, 0.01) for row in seen.split(1)])
    torch.testing.assert_close(gaussian_log_gates(seen, centroids, 0.01), alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bandwidth", [0.0, -0.1])
def test_gates_need_a_positive_bandwidth(bandwidth: float) -> None:
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        gaussian_log_gates(torch.rand(1, 2), torch.rand(1, 2), bandwidth)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_importance_equals_a_loop(batch: int, heads: int, tokens: int, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    attention = torch.rand(batch, heads, tokens, generator=gen)
    weights = torch.rand(batch, heads, generator=gen)
    importance = token_importance(attention, weights)
    assert importance.shape == (batch, tokens)
    for b in range(batch):
        for j in range(tokens):
            wanted = sum(float(weights[b, h]) * float(attention[b, h, j]) for h in range(heads))
            assert importance[b, j].item() == pytest.approx(wanted, rel=1e-5)


def test_importance_is_not_rounded_under_autocast() -> None:
    attention, weights = torch.rand(2, 4, 500), torch.rand(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(token_importance(attention, weights), (weights[..., None] * attention).sum(1))


def test_log_attention_equals_the_formula() -> None:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None]
    attention = torch.rand(2, 3, 5).masked_fill(~mask, 0)
    attention[0, 0, 1] = 0.0
    attention = attention / attention.sum(-1, keepdim=True)
    value = log_attention(attention, mask)
    for b, n in enumerate((5, 3)):
        for h in range(3):
            wanted = [math.log(n * float(a) + 1e-3) for a in attention[b, h, :n]]
            assert value[b, h, :n].tolist() == pytest.approx(wanted, abs=1e-4)
    assert not value[1, :, 3:].any()


def test_log_attention_does_not_depend_on_length_where_attention_is_uniform() -> None:
    for n in (1, 10, 1000):
        torch.testing.assert_close(log_attention(torch.full((n,), 1 / n), _full(n)[0]), torch.full((n,), 1e-3).log1p())


@pytest.mark.parametrize("width", [0, 1, 4])
def test_smoothing_averages_neighbours_that_are_there(width: int) -> None:
    scores = torch.randn(2, 9)
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    scores[1, 4:] = torch.nan  # padding
    smoothed = smooth_over_time(scores, mask, width)
    for row, length in enumerate((9, 4)):
        for i in range(length):
            near = scores[row, max(0, i - width) : min(length, i + width + 1)]
            assert smoothed[row, i].item() == pytest.approx(near.mean().item(), abs=1e-6)
    assert not smoothed[1, 4:].any()
