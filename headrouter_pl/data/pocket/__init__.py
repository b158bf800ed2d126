"""The Pocket benchmark and its training data, out of recordings that Debian packages install.

Names are imported when they are first used, so that listing the sources needs nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrouter_pl.data.pocket.benchmark import PocketBenchmark, PocketItem
    from headrouter_pl.data.pocket.library import ClipLibrary
    from headrouter_pl.data.pocket.training import PocketDataModule, Stage

_HOMES = {
    "ClipLibrary": "headrouter_pl.data.pocket.library",
    "PocketBenchmark": "headrouter_pl.data.pocket.benchmark",
    "PocketDataModule": "headrouter_pl.data.pocket.training",
    "PocketItem": "headrouter_pl.data.pocket.benchmark",
    "Stage": "headrouter_pl.data.pocket.training",
}

__all__ = ["ClipLibrary", "PocketBenchmark", "PocketDataModule", "PocketItem", "Stage"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
