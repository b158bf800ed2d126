"""Which model a profile is for, and the shipped profiles found by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headrouter_pl.models import LalmHandle
from headrouter_pl.profiles.head_profile import SHIPPED_FOLDER, HeadProfile

__all__ = ["SHIPPED_FOLDER", "find_shipped", "fingerprint"]


def fingerprint(handle: LalmHandle, layers: Sequence[int]) -> dict[str, str]:
    """What a model must share with the one that a profile was fitted on, as the profile's metadata keeps it.

    Args:
        handle: The model.
        layers: The probed layers.

    Returns:
        ``model_type``, and as decimal numbers ``num_layers``, ``num_heads`` (query heads of a probed layer) and
        ``hidden_size``.
    """
    return {
        "model_type": handle.family.model_type,
        "num_layers": str(handle.num_layers),
        "num_heads": str(handle.num_heads(layers[0])[0]),
        # From the module: configs keep it under many names.
        "hidden_size": str(handle.attention(layers[0]).o_proj.out_features),
    }


def find_shipped(handle: LalmHandle, layer: int, folder: Path | None = None) -> HeadProfile | None:
    """The shipped profile for a model pruned at a layer.

    Args:
        handle: The model.
        layer: The prune layer K.
        folder: Where to look; :data:`SHIPPED_FOLDER` if None.

    Returns:
        A profile of the model's :func:`fingerprint` that was fitted for layer K: right below it, or in a scout pass
        before it. Of several the cheapest, which looks at the lowest layers; None where there is none.
    """
    found: list[tuple[int, HeadProfile]] = []  # the highest layer looked at, and the profile
    for path in sorted((SHIPPED_FOLDER if folder is None else folder).glob("*.safetensors")):
        profile = HeadProfile.load(path)
        layers = profile.layers
        fits = profile.metadata.get("layer") == str(layer) if profile.pool else max(layers or [-1]) == layer - 1
        if layers and fits and max(layers) < handle.num_layers:
            wanted = fingerprint(handle, layers)
            if wanted.items() <= profile.metadata.items():
                found.append((max(layers), profile))
    return min(found, key=lambda pair: pair[0])[1] if found else None
