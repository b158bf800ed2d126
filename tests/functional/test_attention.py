"""Probe attention and rotary embedding against plain loops and against transformers."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama_rotary
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import apply_rotary_pos_emb as phi_rotary

from headrouter_pl.functional import apply_rotary, probe_attention

torch.set_num_threads(1)


def reference(
    query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor, scaling: float, reduce: str = "mean"
) -> Tensor:
    """The definition, one number at a time."""
    batch, queries, heads, dim = query.shape
    keys, groups = key.shape[1], heads // key.shape[2]
    out = torch.zeros(batch, heads, keys, dtype=torch.float64)
    for b in range(batch):
        rows = [i for i in range(queries) if query_mask[b, i]]
        for h in range(heads):
            for i in rows:
                seen = [j for j in range(keys) if (key_mask[b, i, j] if key_mask.dim() == 3 else key_mask[b, j])]
                logits = [
                    sum(float(query[b, i, h, c]) * float(key[b, j, h // groups, c]) for c in range(dim)) * scaling
                    for j in seen
                ]
                total = sum(math.exp(value - max(logits)) for value in logits)
                for j, value in zip(seen, logits, strict=True):
                    share = math.exp(value - max(logits)) / total
                    out[b, h, j] = max(out[b, h, j], share) if reduce == "max" else out[b, h, j] + share / len(rows)
    return out / out.sum(-1, keepdim=True).clamp(min=1e-300) if reduce == "max" else out


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Tensor]:
    batch, queries, keys = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    kv_heads, groups, dim = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    per_query = draw(st.booleans())
    density = draw(st.sampled_from([0.3, 0.7, 1.0]))
    return {
        "query": 2 * torch.randn(batch, queries, kv_heads * groups, dim, generator=gen),
        "key": 2 * torch.randn(batch, keys, kv_heads, dim, generator=gen),
        "query_mask": torch.rand(batch, queries, generator=gen) < density,
        "key_mask": torch.rand(*((batch, queries, keys) if per_query else (batch, keys)), generator=gen) < density,
    }


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from([None, 1.0, 0.3]), st.sampled_from(["mean", "max"]), st.sampled_from([1, 7, 40, 2**26]))
def test_equals_the_definition(
    case: dict[str, Tensor], scaling: float | None, reduce: Literal["mean", "max"], max_logits: int
) -> None:
    attention = probe_attention(**case, scaling=scaling, reduce=reduce, max_logits=max_logits)
    factor = case["query"].shape[-1] ** -0.5 if scaling is None else scaling
    assert attention.dtype == torch.float32
    wanted = reference(**case, scaling=factor, reduce=reduce)
    torch.testing.assert_close(attention.double(), wanted, atol=1e-6, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_rows_sum_to_the_share_of_queries_that_see_something(case: dict[str, Tensor]) -> None:
    mask = case["key_mask"] if case["key_mask"].dim() == 3 else case["key_mask"][:, None]
    sees = mask.any(-1) & case["query_mask"]
    share = sees.sum(1) / case["query_mask"].sum(1).clamp(min=1)
    sums = probe_attention(**case).sum(-1)
    torch.testing.assert_close(sums, share[:, None].expand_as(sums), atol=1e-6, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(cases(), st.sampled_from([torch.nan, torch.inf, 1e30]))
def test_what_stands_in_the_padding_does_not_matter(case: dict[str, Tensor], junk: float) -> None:
    clean = probe_attention(**case)
    query = case["query"].masked_fill(~case["query_mask"][:, :, None, None], junk)
    unseen = ~(case["key_mask"] if case["key_mask"].dim() == 2 else case["key_mask"].any(1))
    key = case["key"].masked_fill(unseen[:, :, None, None], junk)
    assert torch.equal(probe_attention(**{**case, "query": query, "key": key}), clean)


@pytest.mark.parametrize("empty", ["query_mask", "key_mask"])
def test_zero_for_an_empty_sample(empty: str) -> None:
    masks = {"query_mask": torch.ones(2, 3, dtype=torch.bool), "key_mask": torch.ones(2, 5, dtype=torch.bool)}
    masks[empty][1] = False
    attention = probe_attention(torch.randn(2, 3, 4, 8), torch.randn(2, 5, 2, 8), **masks)
    assert (attention[1] == 0).all()
    torch.testing.assert_close(attention[0].sum(-1), torch.ones(4))


def test_grouped_heads_are_laid_out_as_repeat_kv_does() -> None:
    query, key = torch.randn(1, 2, 6, 4), torch.randn(1, 5, 2, 4)
    masks = {"query_mask": torch.ones(1, 2, dtype=torch.bool), "key_mask": torch.ones(1, 5, dtype=torch.bool)}
    repeated = probe_attention(query, key.repeat_interleave(3, dim=2), **masks)
    torch.testing.assert_close(probe_attention(query, key, **masks), repeated)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="4 query heads do not divide into 3 key heads"):
        probe_attention(
            torch.ones(1, 1, 4, 2),
            torch.ones(1, 1, 3, 2),
            query_mask=torch.ones(1, 1, dtype=torch.bool),
            key_mask=torch.ones(1, 1, dtype=torch.bool),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    query, key = torch.randn(1, 3, 4, 8).to(dtype), torch.randn(1, 50, 2, 8).to(dtype)
    masks = {"query_mask": torch.ones(1, 3, dtype=torch.bool), "key_mask": torch.ones(1, 50, dtype=torch.bool)}
    wanted = probe_attention(query.float(), key.float(), **masks)
    assert torch.equal(probe_attention(query, key, **masks), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(probe_attention(query, key, **masks), wanted)


@pytest.mark.parametrize(("rotary", "width"), [(llama_rotary, 8), (phi_rotary, 8), (phi_rotary, 6), (phi_rotary, 2)])
def test_rotary_equals_transformers(rotary: object, width: int) -> None:
    states = torch.randn(2, 5, 3, 8)
    angles = torch.randn(2, 5, width // 2).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    heads_first = states.transpose(1, 2)
    wanted, _ = rotary(heads_first, heads_first, cos, sin)  # type: ignore[operator]
    assert torch.equal(apply_rotary(states, cos, sin), wanted.transpose(1, 2))
    shared = apply_rotary(states[:1], cos[:1], sin[:1])
    assert torch.equal(shared, apply_rotary(states, cos, sin)[:1])


def test_rotary_of_one_batch_serves_all() -> None:
    states, angles = torch.randn(3, 5, 2, 4), torch.randn(1, 5, 4)
    wanted = apply_rotary(states, angles.cos().expand(3, -1, -1), angles.sin().expand(3, -1, -1))
    assert torch.equal(apply_rotary(states, angles.cos(), angles.sin()), wanted)
