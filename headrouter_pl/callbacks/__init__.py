"""Lightning callbacks."""

from headrouter_pl.callbacks.align_projector import AlignProjector
from headrouter_pl.callbacks.head_router import HeadRouterCallback

__all__ = ["AlignProjector", "HeadRouterCallback"]
