"""FastV as published (arXiv 2403.06764, github.com/pkunlp-icler/FastV): attention weights formed in full at one layer.

Imitates its forward with a KV cache: layer K - 1 runs eager attention, whose weights ``[H, L, L]`` are averaged over
the heads, the last row ranks the audio tokens, and the rest is cut out of the hidden states. Where the audio stands is
found by its placeholders (there: constants).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headrouter_pl.models import find_lalm
from peers._hooks import count_kept, shorten


@contextmanager
def fastv(model: nn.Module, keep_ratio: float, layer: int = 2) -> Iterator[None]:
    """Prunes prefills by the last token's attention at layer ``layer - 1``."""
    handle = find_lalm(model)
    attention = handle.attention(layer - 1)
    weights: list[Tensor] = []

    def add_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        length = args[0].shape[1]
        if length == 1:
            return None
        mask = torch.full((length, length), torch.finfo(args[0].dtype).min, dtype=args[0].dtype, device=args[0].device)
        return args, {**kwargs, "attention_mask": mask.triu(1)[None, None]}

    def keep_weights(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        weights[:] = [output[1]]

    def choose(hidden: Tensor, audio: Tensor, kwargs: dict[str, Any]) -> Tensor:
        last = weights.pop().mean(1)[0, -1]
        return audio[last[audio].topk(count_kept(audio, keep_ratio)).indices]

    config = attention.config
    attention.config = copy.copy(config)
    attention.config._attn_implementation = "eager"
    hooks = [
        handle.layers[layer - 1].register_forward_pre_hook(add_mask, with_kwargs=True),
        attention.register_forward_hook(keep_weights),
    ]
    try:
        with shorten(handle, layer, choose):
            yield
    finally:
        attention.config = config
        for hook in hooks:
            hook.remove()
