"""The KV cache among the arguments of a model's forward, which transformers 5.24 renamed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["cache_argument", "cache_in"]


def cache_argument(model: nn.Module) -> str:
    """What a model's forward calls its KV cache: ``"cache"``, or ``"past_key_values"`` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_in(given: Mapping[str, Any]) -> Any:
    """The KV cache among the named arguments of a forward, under either name; None where there is none."""
    cache = given.get("cache")
    return given.get("past_key_values") if cache is None else cache
