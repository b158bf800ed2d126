"""Probe attention: what a few question tokens look at among the audio tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# Query rows are taken in blocks so that the logits of one block stay below this many elements (256 MiB in fp32).
MAX_LOGITS = 2**26

Queries = Literal["prompt", "last", "max"]
"""Whose attention is probed, see :class:`headrouter_pl.scorers.Probe`."""


def probe_attention(
    query: Tensor,
    key: Tensor,
    *,
    query_mask: Tensor,
    key_mask: Tensor,
    scaling: float | None = None,
    reduce: Literal["mean", "max"] = "mean",
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    r"""Attention of each head from the probe queries to the keys, averaged over the queries.

    .. math:: a_{b,h,j} = \operatorname{mean}_{i}\ \operatorname{softmax}_j(q_{b,h,i} \cdot k_{b,h,j} \, / \sqrt d)

    Position-agnostic probing (HeadRouter, arXiv 2604.23717) gives queries and keys from before the rotary embedding;
    averaging over the question's tokens is this project's definition. The softmax runs over the keys that ``key_mask``
    allows and over nothing else. At most ``max_logits`` logits exist at once; nothing of size L x L is formed.

    Args:
        query: Float tensor ``[B, Q, H, d]``.
        key: Float tensor ``[B, N, Hkv, d]``; ``H`` is a multiple of ``Hkv`` (grouped-query attention).
        query_mask: Bool tensor ``[B, Q]``, False for padding.
        key_mask: Bool tensor ``[B, N]``, or ``[B, Q, N]`` where the queries do not all see the same keys.
        scaling: Factor on the dot product; ``1 / sqrt(d)`` if None.
        reduce: ``"mean"`` over the queries; ``"max"`` takes the largest of them at each key, and divides each row by
            its sum.
        max_logits: Upper bound on the elements of one block of logits.

    Returns:
        Float32 tensor ``[B, H, N]``. Each row sums to one, or to zero for a sample without queries or without keys.

    Example:
        >>> q, k = torch.ones(1, 2, 4, 8), torch.ones(1, 5, 2, 8)
        >>> full = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool)
        >>> probe_attention(q, k, query_mask=full[0], key_mask=full[1])[0, 0].tolist()
        [0.20000000298023224, 0.20000000298023224, 0.20000000298023224, 0.20000000298023224, 0.20000000298023224]
    """
    batch, num_queries, heads, head_dim = query.shape
    num_keys, kv_heads = key.shape[1:3]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide into {kv_heads} key heads")
    if key_mask.dim() == 2:
        key_mask = key_mask[:, None, :]
    groups = heads // kv_heads
    scaling = head_dim**-0.5 if scaling is None else scaling
    # [B, Q, H, d] -> [B, Hkv, Q, G, d], so that one matmul serves the query heads that share a key head.
    query = query.float().mul(scaling).view(batch, num_queries, kv_heads, groups, head_dim).permute(0, 2, 1, 3, 4)
    key = key.float().permute(0, 2, 3, 1)
    attention = query.new_zeros(batch, kv_heads, groups, num_keys)
    block = max(1, max_logits // max(1, batch * heads * num_keys))
    for start in range(0, num_queries, block):
        rows = slice(start, start + block)
        with torch.autocast(query.device.type, enabled=False):  # it would round the logits to half precision
            logits = (query[:, :, rows].flatten(2, 3) @ key).unflatten(2, (-1, groups))
        visible = key_mask if key_mask.shape[1] == 1 else key_mask[:, rows]
        visible = (visible & query_mask[:, rows, None])[:, None, :, None, :]
        # A row that sees no key, or a query of padding, may be NaN after the softmax; it counts as zero attention.
        weights = logits.masked_fill(~visible, -torch.inf).softmax(-1).masked_fill(~visible, 0.0)
        if reduce == "max":
            attention = torch.maximum(attention, weights.amax(2))
        else:
            attention += weights.sum(2)
    if reduce == "max":
        return (attention / attention.sum(-1, keepdim=True).clamp(min=torch.finfo(attention.dtype).tiny)).flatten(1, 2)
    count = query_mask.sum(1).clamp(min=1)
    return (attention / count[:, None, None, None]).flatten(1, 2)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout of Llama, on the first ``cos.shape[-1]`` channels.

    Args:
        states: Float tensor ``[B, L, H, d]``.
        cos: Float tensor ``[B or 1, L, r]`` with ``r <= d`` (partial rotary where smaller).
        sin: Like ``cos``.

    Returns:
        Float tensor ``[B, L, H, d]``.
    """
    width = cos.shape[-1]
    turned, rest = states[..., :width], states[..., width:]
    half = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), dim=-1)
    return torch.cat((turned * cos.unsqueeze(-2) + half * sin.unsqueeze(-2), rest), dim=-1)
