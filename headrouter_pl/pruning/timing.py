"""Times prefills inside whatever calls them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from headrouter_pl.models import find_lalm


def now() -> float:
    """The clock in seconds, after the GPU's work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def time_prefills(model: nn.Module, *, whole: bool = False) -> Iterator[list[float]]:
    """Collects the seconds of each forward over more than one position, pruned or not.

    Probing and selection are in it, and further passes that a scorer runs inside it; decoding steps are not.
    Synchronises a GPU.

    Args:
        model: A supported model, or a module that holds one.
        whole: Time the model's whole forward, and not its decoder's alone: with its encoder (unless it has been taken
            out), its projector, its head, and what a scorer does before the decoder.

    Yields:
        Seconds of each prefill so far.
    """
    handle = find_lalm(model)
    timed = handle.model if whole else handle.decoder
    seconds: list[float] = []
    under_way: list[float] = []

    def start(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        under_way.append(now())

    def stop(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        started = under_way.pop()
        shown = kwargs.get("inputs_embeds")
        if shown is None:
            shown = kwargs.get("input_ids", args[0] if args else None)
        if not under_way and shown is not None and shown.shape[1] > 1:
            seconds.append(now() - started)

    hooks = [
        timed.register_forward_pre_hook(start, with_kwargs=True, prepend=True),
        timed.register_forward_hook(stop, with_kwargs=True),
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
