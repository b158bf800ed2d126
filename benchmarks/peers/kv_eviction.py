"""Eviction of keys and values after the prefill, in the style of kvpress (github.com/NVIDIA/kvpress), as SnapKV.

Imitates it: every layer computes the prompt in full; then a hook on its attention scores its cached keys by the
attention of the last queries (SnapKV, arXiv 2404.14469: at most 64, smoothed over 5 keys) and keeps the best of each
key head. Only audio competes here, as in the other methods, and the queries are those after it. Saves memory and time
of decoding, and nothing of the prefill.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrouter_pl.functional import apply_rotary
from headrouter_pl.models import find_lalm
from headrouter_pl.models.caches import cache_in
from peers._hooks import count_kept, watch_audio

WINDOW, KERNEL = 64, 5


@contextmanager
def kv_eviction(model: nn.Module, keep_ratio: float, layer: int = 0) -> Iterator[None]:
    """Evicts audio from the caches of all layers after each prefill. ``layer`` does not matter to it."""
    handle = find_lalm(model)

    def evict(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden: Tensor = kwargs["hidden_states"]
        length = hidden.shape[1]
        if length == 1:
            return
        held = cache_in(kwargs).layers[module.layer_idx]
        window = min(WINDOW, length - 1 - int(audio[0][-1]))
        score = _window_attention(module, hidden[:, -window:], kwargs["position_embeddings"], held.keys)
        kept = score[:, :, audio[0]].topk(count_kept(audio[0], keep_ratio), dim=-1).indices
        stays = torch.ones(score.shape, dtype=torch.bool, device=hidden.device)
        stays[:, :, audio[0]] = False
        stays.scatter_(2, audio[0][kept], True)
        index = stays.nonzero()[:, 2].view(*score.shape[:2], -1, 1).expand(-1, -1, -1, held.keys.shape[-1])
        held.keys, held.values = held.keys.gather(2, index), held.values.gather(2, index)

    with watch_audio(handle) as audio:
        hooks = [
            handle.attention(index).register_forward_hook(evict, with_kwargs=True) for index in range(handle.num_layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _window_attention(module: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], keys: Tensor) -> Tensor:
    """Attention of the last positions, averaged over them and over the queries of each key head, ``[1, Hkv, L]``."""
    window, (_, heads, length, dim) = hidden.shape[1], keys.shape
    query = module.q_proj(hidden).view(1, window, -1, dim)
    query = apply_rotary(query, *(part[:, -window:] for part in rotary)).transpose(1, 2)
    logits = query.reshape(1, heads, -1, dim) @ keys.transpose(2, 3) * module.scaling  # [1, Hkv, G * window, L]
    logits = logits.view(1, heads, -1, window, length)
    later = torch.ones(window, length, dtype=torch.bool, device=keys.device).triu(length - window + 1)
    attention = logits.masked_fill(later, -torch.inf).softmax(-1, dtype=torch.float32).mean((2, 3))
    return F.avg_pool1d(attention, KERNEL, stride=1, padding=KERNEL // 2)
