"""What the commands that ask the pocket model the questions of the Pocket benchmark share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrouter_pl.errors import ConfigurationError, HeadRouterError

if TYPE_CHECKING:
    from headrouter_pl.data.pocket.benchmark import PocketItem

MAX_NEW_TOKENS = 48
"""Enough for every right answer."""


def choose_items(items: Sequence[PocketItem], lengths: list[int] | None, max_scenes: int | None) -> list[PocketItem]:
    """The questions about the first ``max_scenes`` scenes of each of these lengths, in seconds; None for all.

    Raises:
        HeadRouterError: No scene is of one of the lengths, or there are no questions.
        ConfigurationError: ``max_scenes`` is not positive.
    """
    scenes: dict[int, list[str]] = {}
    for item in items:
        seen = scenes.setdefault(round(item.seconds), [])
        if item.audio not in seen:
            seen.append(item.audio)
    if max_scenes is not None and max_scenes < 1:
        raise ConfigurationError(f"max_scenes must be positive, got {max_scenes}")
    if unknown := sorted(set(lengths or ()) - scenes.keys()):
        raise HeadRouterError(f"no questions about scenes of {unknown} s; there are {sorted(scenes)}")
    wanted = {name for seconds, names in scenes.items() if lengths is None or seconds in lengths
              for name in names[:max_scenes]}  # fmt: skip
    chosen = [item for item in items if item.audio in wanted]
    if not chosen:
        raise HeadRouterError(f"no questions to ask: lengths={lengths}, of {len(items)} questions")
    return chosen


def load_model(weights: str, checkpoint: str | None, dtype: Any) -> tuple[Any, Any]:
    """The pocket model and its processor.

    Args:
        weights: ``"shipped"``, ``"untrained"``, or a folder of exported weights.
        checkpoint: A Lightning checkpoint of the training, instead.
        dtype: A torch dtype.
    """
    from headrouter_pl.models.pocket import load_pocket
    from headrouter_pl.models.pocket_weights import load_pocket_checkpoint, load_trained_pocket

    if checkpoint is not None:
        if weights != "shipped":
            raise HeadRouterError("give weights or a checkpoint, not both")
        return load_pocket_checkpoint(checkpoint, dtype=dtype)
    if weights == "untrained":
        return load_pocket(dtype=dtype)
    return load_trained_pocket(None if weights == "shipped" else weights, dtype=dtype)


def weights_digest(model: Any) -> str:
    """Sixteen hex digits of the weights themselves: a checkpoint's file may be another by now."""
    import torch

    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def items_digest(items: Sequence[PocketItem]) -> str:
    """Sixteen hex digits of the questions."""
    return hashlib.sha256(json.dumps([dataclasses.asdict(item) for item in items]).encode()).hexdigest()[:16]
