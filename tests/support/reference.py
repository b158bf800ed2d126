"""The definition of exactness: the full sequence, with the dropped tokens masked as keys in the layers from K on.

Written independently of the engine: it only edits the mask that a layer is given (or makes one), and knows nothing of
gathering, caches or fillers. Models must run without a cache under it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def masked_from(layers: nn.ModuleList, layer: int, dropped: Tensor, *, evicted: Sequence[int] = ()) -> Iterator[None]:
    """Masks keys in the layers from ``layer`` on.

    Args:
        layers: The decoder's layers, with eager or sdpa attention.
        layer: The prune layer K.
        dropped: Bool tensor ``[B, L]``; positions after these (generated ones) are not dropped.
        evicted: Where each prefill ends: later queries do not see the dropped keys before it in the layers below
            ``layer`` either.
    """

    def mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert kwargs.get("cache", kwargs.get("past_key_values")) is None, "the reference runs without a cache"
        length = (args[0] if args else kwargs["hidden_states"]).shape[-2]
        # A dropped token still sees itself: nobody reads its output, but it must be finite.
        gone = torch.nn.functional.pad(dropped, (0, length - dropped.shape[1]))[:, None, None, :]
        gone = gone & ~torch.eye(length, dtype=torch.bool)
        if module in below:
            later = torch.zeros(length, length, dtype=torch.bool)
            for end in evicted:
                later[end:, :end] = True
            gone = gone & later
        given = kwargs.get("attention_mask")
        if given is None:
            given = torch.ones(length, length, dtype=torch.bool).tril().expand(len(dropped), 1, -1, -1)
        if given.dtype == torch.bool:
            kwargs["attention_mask"] = given & ~gone
        else:
            kwargs["attention_mask"] = given.masked_fill(gone, torch.finfo(given.dtype).min)
        return args, kwargs

    below = set(layers[:layer]) if evicted else set()
    blocks = layers if evicted else layers[layer:]
    handles = [block.register_forward_pre_hook(mask, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dropped_from(report: Any, audio_mask: Tensor, *, every: int = 1) -> Tensor:
    """Bool tensor ``[B, L]`` of the audio tokens that a report says were not kept.

    Args:
        report: A ``PruningReport``; its first ``B * every`` samples are read.
        audio_mask: Bool tensor ``[B, L]``.
        every: Rows per sample in the report (beams, returned sequences).
    """
    dropped = audio_mask.clone()
    for row in range(len(audio_mask)):
        dropped[row, report.samples[row * every].kept] = False
    return dropped
