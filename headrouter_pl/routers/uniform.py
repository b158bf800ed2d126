"""No routing: what the others have to beat."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers.base import Router


class UniformRouter(Router):
    """Every type as likely as the other, whatever is asked: one set of head weights, the mean of all types'."""

    def log_evidence(self, profile: HeadProfile, prompts: Sequence[str] | None, selectivity: Tensor) -> Tensor:
        """See :meth:`Router.log_evidence`."""
        return selectivity.new_zeros(len(selectivity), len(profile.types))
