"""Lightning callbacks."""

from headrouter_pl.callbacks.head_router import HeadRouterCallback

__all__ = ["HeadRouterCallback"]
