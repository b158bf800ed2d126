"""How many tokens to keep, and which."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_counts(seen: Tensor, *, keep_ratio: float | None = None, keep_tokens: int | None = None) -> Tensor:
    """Number of audio tokens to keep in each sample.

    Exactly one of ``keep_ratio`` and ``keep_tokens`` is given. A sample that has audio keeps at least one token of it.

    Args:
        seen: Long tensor ``[B]``, audio tokens of each sample.
        keep_ratio: Share in (0, 1]; ``max(1, round(keep_ratio * seen))`` are kept (ties to even).
        keep_tokens: Absolute budget; ``min(keep_tokens, seen)`` are kept.

    Returns:
        Long tensor ``[B]``.

    Example:
        >>> keep_counts(torch.tensor([10, 1, 0]), keep_ratio=0.3).tolist()
        [3, 1, 0]
    """
    if (keep_ratio is None) == (keep_tokens is None):
        raise ValueError("give exactly one of keep_ratio and keep_tokens")
    if keep_tokens is not None:
        if keep_tokens < 1:
            raise ValueError(f"keep_tokens must be at least 1, got {keep_tokens}")
        return seen.clamp(max=keep_tokens)
    if keep_ratio is None or not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be in (0, 1], got {keep_ratio}")
    # float64: 0.35 * 10 must not become 3.4999998.
    wanted = torch.round(seen.double() * keep_ratio).long()
    return torch.minimum(wanted.clamp(min=1), seen)


def select_tokens(importance: Tensor, key_mask: Tensor, counts: Tensor) -> Tensor:
    """Marks the ``counts`` most important tokens of each sample; of equals, the earlier ones.

    Args:
        importance: Float tensor ``[B, N]``.
        key_mask: Bool tensor ``[B, N]``, False for padding.
        counts: Long tensor ``[B]``, at most the true tokens of each sample.

    Returns:
        Bool tensor ``[B, N]`` with exactly ``counts[b]`` true entries in row b.
    """
    # The clamp keeps true tokens above padding, whatever their importance.
    importance = importance.clamp(min=torch.finfo(importance.dtype).min)
    order = importance.masked_fill(~key_mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device)
    return torch.zeros_like(key_mask).scatter(1, order, ranks < counts[:, None])


def spread_evenly(candidates: Tensor, counts: Tensor) -> Tensor:
    """Marks ``counts`` of each row's candidates, evenly spaced among them.

    Args:
        candidates: Bool tensor ``[B, N]``.
        counts: Long tensor ``[B]``; all candidates are marked where there are no more than that.

    Returns:
        Bool tensor ``[B, N]`` with ``min(counts[b], candidates[b].sum())`` true entries in row b.

    Example:
        >>> spread_evenly(torch.tensor([[True, True, False, True, True]]), torch.tensor([2]))
        tensor([[False,  True, False, False,  True]])
    """
    rank = candidates.cumsum(1)
    total = rank[:, -1:].clamp(min=1)
    counts = torch.minimum(counts[:, None], total)
    # A candidate is the k-th one marked where floor(rank * counts / total) steps up to k.
    return candidates & (rank * counts // total > (rank - 1) * counts // total)
