"""Routing by the audio."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from headrouter_pl.functional import gaussian_log_gates
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers.base import Router


class SelectivityRouter(Router):
    """Gaussian soft routing on head selectivity (HeadRouter, arXiv 2604.23717).

    A profile without centroids leaves every type as likely as the other.
    """

    def log_evidence(self, profile: HeadProfile, prompts: Sequence[str] | None, selectivity: Tensor) -> Tensor:
        """See :meth:`Router.log_evidence`."""
        if profile.centroids is None:
            return selectivity.new_zeros(len(selectivity), len(profile.types))
        return gaussian_log_gates(selectivity, profile.centroids.to(selectivity, non_blocking=True), profile.bandwidth)
