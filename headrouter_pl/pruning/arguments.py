"""Names of what a module's forward is given, for hooks that must find it among positional and keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def parameter_names(module: nn.Module, wanted: str) -> list[str]:
    """Names of the positional arguments of a module's forward, ``wanted`` among them.

    Looks through wrappers that take anything (compiled modules, checkpoint wrappers), and at classes: an instance's
    forward may have been replaced.
    """
    for part in module.modules():
        names = list(inspect.signature(type(part).forward).parameters)[1:]
        if wanted in names:
            return names
    return [wanted]


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, those that were not given left out."""
    return {**dict(zip(names, args, strict=False)), **kwargs}
