"""What the commands that ask the pocket model the questions of the Pocket benchmark share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any

from headrouter_pl.errors import ConfigurationError, HeadRouterError

if TYPE_CHECKING:
    from headrouter_pl.data.pocket.benchmark import PocketItem

FORMAT = 2
"""Of answers in logs. Raise it when the same settings would be answered otherwise: logs of before are then refused."""

MAX_NEW_TOKENS = 48
"""Enough for every right answer."""


def choose_items(
    items: Sequence[PocketItem], lengths: list[int] | None, max_scenes: int | None, tasks: list[str] | None = None
) -> list[PocketItem]:
    """Questions of the benchmark, those of one scene together, with scenes of all lengths by turns.

    Scenes of one length are shuffled, always alike: the benchmark lists them by what they are asked.

    Args:
        items: All questions.
        lengths: Seconds of the scenes to ask about; None for all.
        max_scenes: Scenes of each length, at most: the first of those that are asked about without it.
        tasks: What to ask; None for all.

    Raises:
        HeadRouterError: No scene is of one of the lengths, or there are no questions.
        ConfigurationError: ``max_scenes`` is not positive.
    """
    import numpy as np

    if max_scenes is not None and max_scenes < 1:
        raise ConfigurationError(f"max_scenes must be positive, got {max_scenes}")
    scenes: dict[int, list[list[PocketItem]]] = {}
    for _, group in groupby(items, key=lambda item: item.audio):
        scene = list(group)
        scenes.setdefault(round(scene[0].seconds), []).append(scene)
    if unknown := sorted(set(lengths or ()) - scenes.keys()):
        raise HeadRouterError(f"no questions about scenes of {unknown} s; there are {sorted(scenes)}")
    chosen = []
    for seconds, of_length in sorted(scenes.items()):
        if lengths is None or seconds in lengths:
            shuffled = [of_length[i] for i in np.random.default_rng(0).permutation(len(of_length))]
            asked = [[item for item in scene if tasks is None or item.task in tasks] for scene in shuffled]
            chosen.append([scene for scene in asked if scene][:max_scenes])
    mixed = [item for turn in zip_longest(*chosen, fillvalue=[]) for scene in turn for item in scene]
    if not mixed:
        raise HeadRouterError(f"no questions to ask: lengths={lengths}, tasks={tasks}, of {len(items)} questions")
    return mixed


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
    """Sixteen hex digits of the weights themselves, in bfloat16: a checkpoint's file may be another by now.

    Those loaded in float32 have the same; which dtype a run used is told beside it.
    """
    import torch

    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        value = value.to(torch.bfloat16) if value.is_floating_point() else value
        found.update(value.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def items_digest(items: Sequence[PocketItem]) -> str:
    """Sixteen hex digits of the questions."""
    return hashlib.sha256(json.dumps([dataclasses.asdict(item) for item in items]).encode()).hexdigest()[:16]
