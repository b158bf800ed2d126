"""What the peers share: where the audio is, how much of it is kept, and a sequence that gets shorter at one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headrouter_pl.functional import keep_counts
from headrouter_pl.models import LalmHandle

Choose = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""Hidden states ``[1, L, d]``, audio positions ``[N]`` and the layer's arguments -> audio positions to keep."""


@contextmanager
def watch_audio(handle: LalmHandle) -> Iterator[list[Tensor]]:
    """Keeps the positions ``[N]`` of the audio tokens of the last prefill, as the only element of a list."""
    found: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and ids.shape[1] > 1:
            if len(ids) > 1 or kwargs.get("attention_mask") is not None:
                raise ValueError("the peers take one sample at a time, without a mask")
            found[:] = [(ids[0] == handle.audio_token_id).nonzero()[:, 0]]

    hook = handle.inputs[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def count_kept(audio: Tensor, keep_ratio: float) -> int:
    """How many of the audio tokens are kept: as many as ours keep."""
    return int(keep_counts(torch.tensor([len(audio)]), keep_ratio=keep_ratio))


def with_text(kept: Tensor, audio: Tensor, length: int) -> Tensor:
    """Positions of the kept audio tokens and of everything that is not audio, in order."""
    stays = torch.ones(length, dtype=torch.bool, device=audio.device)
    stays[audio] = False
    stays[kept] = True
    return stays.nonzero()[:, 0]


def cut(arguments: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """A decoder layer's arguments at the kept positions; they keep their places in the rotary embedding."""
    assert arguments.get("attention_mask") is None  # sdpa and flash attention, without padding
    cut = dict(arguments)
    if cut.get("position_embeddings") is not None:
        cut["position_embeddings"] = tuple(part[..., kept, :] for part in cut["position_embeddings"])
    if cut.get("position_ids") is not None:
        cut["position_ids"] = cut["position_ids"][..., kept]
    return cut


@contextmanager
def shorten(handle: LalmHandle, layer: int, choose: Choose) -> Iterator[None]:
    """Cuts the sequence of each prefill before a layer, for good: later layers, the norm and the head see the rest."""
    kept: list[Tensor] = []

    def hook(first: bool) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            (hidden,) = args
            if hidden.shape[1] == 1:
                return None
            if first:
                kept[:] = [with_text(choose(hidden, audio[0], kwargs), audio[0], hidden.shape[1])]
                hidden = hidden[:, kept[0]]
            return (hidden,), cut(kwargs, kept[0])

        return run

    with watch_audio(handle) as audio:
        hooks = [
            module.register_forward_pre_hook(hook(first=number == 0), with_kwargs=True)
            for number, module in enumerate(handle.layers[layer:])
        ]
        try:
            yield
        finally:
            for registered in hooks:
                registered.remove()
