"""The definition of exactness: the full sequence, with the dropped tokens masked as keys in the layers from K on.

Written independently of the engine: it only edits the additive or boolean mask that a layer is given (or makes one),
and knows nothing of gathering, caches or fillers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def masked_from(layers: nn.ModuleList, layer: int, dropped: Tensor) -> Iterator[None]:
    """Masks keys in the layers from ``layer`` on.

    Args:
        layers: The decoder's layers, with eager or sdpa attention.
        layer: The prune layer K.
        dropped: Bool tensor ``[B, L]``; later positions (generated without a cache) are not dropped.
    """

    def mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        length = hidden.shape[-2]
        gone = torch.nn.functional.pad(dropped, (0, length - dropped.shape[1]))[:, None, None, :]
        given = kwargs.get("attention_mask")
        if given is None:
            given = torch.ones(length, length, dtype=torch.bool).tril().expand(len(dropped), 1, -1, -1)
        if given.dtype == torch.bool:
            # A dropped token that only saw dropped ones sees itself: its output is read by nobody, but must be finite.
            own = torch.eye(length, dtype=torch.bool)
            kwargs["attention_mask"] = (given & ~gone) | (own & given)
        else:
            kwargs["attention_mask"] = given.masked_fill(gone & ~torch.eye(length, dtype=torch.bool), torch.finfo(given.dtype).min)
        return args, kwargs

    handles = [block.register_forward_pre_hook(mask, with_kwargs=True) for block in layers[layer:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
