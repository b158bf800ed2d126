"""Logits of the tokens that a label follows alone: nearly all others are of audio, and nobody reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["answer_logits"]


@contextmanager
def answer_logits(model: nn.Module, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Inside the block, the logits of a stock forward are ``[M, vocabulary]``, of the M tokens that a label follows.

    Args:
        model: A language model with an output head.
        labels: int64 ``[B, L]``, -100 outside the answers.

    Yields:
        The labels that follow, int64 ``[M]``, row by row, and where they do, bool ``[B, L]``.
    """
    following = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    answers = following != -100
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    # The head may be on another device than the labels, in a model that is split over several.
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][answers.to(args[0].device)], *args[1:]))
    try:
        yield following[answers], answers
    finally:
        hook.remove()
