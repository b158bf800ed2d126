"""Routers: what kind of question is asked of the audio.

To add one: a file with a :class:`Router`, and a line in :data:`ROUTERS`.
"""

from __future__ import annotations

from headrouter_pl.errors import unknown_name
from headrouter_pl.routers.base import Router
from headrouter_pl.routers.fixed import FixedRouter
from headrouter_pl.routers.joint import JointRouter, PromptPrior
from headrouter_pl.routers.prompt import PromptRouter
from headrouter_pl.routers.selectivity import SelectivityRouter
from headrouter_pl.routers.uniform import UniformRouter

ROUTERS: dict[str, type[Router]] = {
    "joint": JointRouter,
    "prompt": PromptPrior,
    "selectivity": SelectivityRouter,
    "uniform": UniformRouter,
}
"""Routers by the name that ``HeadRouterCallback(router=...)`` takes."""


def get_router(router: str | Router | PromptRouter) -> Router:
    """The router of that name, or the given one; a bare :class:`PromptRouter` becomes the prior of a joint router."""
    if isinstance(router, Router):
        return router
    if isinstance(router, PromptRouter):
        return JointRouter(PromptPrior(router))
    if router not in ROUTERS:
        raise unknown_name("router", str(router), ROUTERS)
    return ROUTERS[router]()


__all__ = [
    "ROUTERS",
    "FixedRouter",
    "JointRouter",
    "PromptPrior",
    "PromptRouter",
    "Router",
    "SelectivityRouter",
    "UniformRouter",
    "get_router",
]
