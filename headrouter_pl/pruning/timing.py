"""Times the decoder's prefill inside whatever calls it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from headrouter_pl.models import find_lalm


@contextmanager
def time_prefills(model: nn.Module) -> Iterator[list[float]]:
    """Collects the seconds of each decoder forward over more than one position, pruned or not.

    The audio encoder, the head and decoding steps are not in it; probing and selection are. Synchronises a GPU.

    Args:
        model: A supported model, or a module that holds one.

    Yields:
        Seconds of each prefill so far.
    """
    decoder = find_lalm(model).decoder
    seconds: list[float] = []
    started = 0.0

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal started
        started = now()

    def stop(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        shown = kwargs.get("inputs_embeds", kwargs.get("input_ids", args[0] if args else None))
        if shown is not None and shown.shape[1] > 1:
            seconds.append(now() - started)

    hooks = [
        decoder.register_forward_pre_hook(start, with_kwargs=True, prepend=True),
        decoder.register_forward_hook(stop, with_kwargs=True),
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
