"""Head-routed audio token pruning for audio language models, as a PyTorch Lightning callback.

Names are imported when they are first used, so that ``import headrouter_pl`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrouter_pl._version import __version__

if TYPE_CHECKING:
    from headrouter_pl.callbacks import HeadRouterCallback
    from headrouter_pl.errors import HeadRouterError
    from headrouter_pl.lalm_module import LALMModule
    from headrouter_pl.profiles import HeadProfile
    from headrouter_pl.pruning import AudioTokenPruner, PruningReport
    from headrouter_pl.routers import PromptRouter

_HOMES = {
    "AudioTokenPruner": "headrouter_pl.pruning",
    "HeadProfile": "headrouter_pl.profiles",
    "HeadRouterCallback": "headrouter_pl.callbacks",
    "HeadRouterError": "headrouter_pl.errors",
    "LALMModule": "headrouter_pl.lalm_module",
    "PromptRouter": "headrouter_pl.routers",
    "PruningReport": "headrouter_pl.pruning",
}

__all__ = [
    "AudioTokenPruner",
    "HeadProfile",
    "HeadRouterCallback",
    "HeadRouterError",
    "LALMModule",
    "PromptRouter",
    "PruningReport",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
