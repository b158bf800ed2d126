"""Selectivity of heads, Gaussian gates, and the weighted importance of tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_FLOOR = 1e-3
"""Added to attention, in shares of uniform attention, before its logarithm is taken."""


def selectivity(attention: Tensor, key_mask: Tensor) -> Tensor:
    r"""How concentrated each head's attention is: :math:`s = 1 - \mathrm{entropy}(a) / \log N` (our definition).

    Args:
        attention: Float tensor ``[..., N]``, rows summing to one over the true keys.
        key_mask: Bool tensor broadcastable to ``attention``, False for padding.

    Returns:
        Float tensor ``[...]`` in [0, 1]: 0 for uniform attention, 1 for attention on one token. With fewer than two
        tokens there is nothing to select from and it is 0.
    """
    count = key_mask.sum(-1).to(attention.dtype)
    entropy = torch.special.entr(attention.masked_fill(~key_mask, 0.0)).sum(-1)
    value = 1 - entropy / count.clamp(min=2).log()
    return torch.where(count > 1, value.clamp(0, 1), torch.zeros_like(value))


def gaussian_log_gates(selectivity: Tensor, centroids: Tensor, bandwidth: float) -> Tensor:
    r"""Log of the Gaussian gates :math:`-\lVert s - \mu_c \rVert^2 / 2 \sigma^2` (HeadRouter, arXiv 2604.23717).

    Args:
        selectivity: Float tensor ``[B, P]``, one value per probed head.
        centroids: Float tensor ``[T, P]``, one row per type.
        bandwidth: :math:`\sigma > 0`, in units of selectivity.

    Returns:
        Float tensor ``[B, T]``, unnormalised.
    """
    if bandwidth <= 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    # Not cdist: above 25 rows it subtracts matmuls, and loses the small distances that a narrow gate lives on.
    distances = (selectivity[:, None] - centroids).square().sum(-1)
    return -distances / (2 * bandwidth**2)


def token_importance(attention: Tensor, head_weights: Tensor) -> Tensor:
    r"""Importance of each audio token: :math:`I_j = \sum_h w_h a_{h,j}` (HeadRouter, arXiv 2604.23717).

    Args:
        attention: Float tensor ``[B, P, N]`` over the P probed heads.
        head_weights: Float tensor ``[B, P]``.

    Returns:
        Float tensor ``[B, N]``.
    """
    # Not a matmul: autocast and TF32 would round the sums, and tie tokens that differ.
    return (head_weights[:, :, None] * attention).sum(1)


def log_attention(attention: Tensor, key_mask: Tensor) -> Tensor:
    r"""Log of attention over uniform attention: :math:`\log(N a_{h,j} + \epsilon)` (our definition).

    0 for uniform attention, whatever the length of the audio; at least ``log(LOG_FLOOR)``.

    Args:
        attention: Float tensor ``[..., N]``, rows summing to one over the true keys.
        key_mask: Bool tensor broadcastable to ``attention``, False for padding.

    Returns:
        Float tensor ``[..., N]``; 0 at padding.
    """
    count = key_mask.sum(-1, keepdim=True).to(attention.dtype)
    return (attention * count + LOG_FLOOR).log().masked_fill(~key_mask, 0.0)


def smooth_over_time(scores: Tensor, key_mask: Tensor, width: int) -> Tensor:
    """Averages the score of each token with those of its neighbours (this project's).

    What answers a question is heard over many tokens in a row, few of which are looked at much.

    Args:
        scores: Float tensor ``[B, N]``.
        key_mask: Bool tensor ``[B, N]``, False for padding, which counts for nothing.
        width: Neighbours on each side; there are fewer at the ends.

    Returns:
        Float tensor ``[B, N]``; zero at padding.
    """
    there = key_mask.to(scores.dtype)
    summed, count = (
        F.avg_pool1d(values[:, None], 2 * width + 1, stride=1, padding=width)[:, 0]
        for values in (scores.masked_fill(~key_mask, 0.0), there)
    )
    return (summed / count.clamp(min=0.5 / (2 * width + 1))).masked_fill(~key_mask, 0.0)
