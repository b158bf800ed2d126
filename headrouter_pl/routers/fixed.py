"""Routing by what is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrouter_pl.errors import HeadRouterError, ProfileMismatchError
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers.base import Router


class FixedRouter(Router):
    """Routes each sample to a type that is given: the ceiling of routing where it is the true one.

    Args:
        types: One type name a sample of the next batch; to be set anew before every batch. One list may serve a whole
            multiple of its samples (beams, returned sequences).
    """

    def __init__(self, types: Sequence[str] = ()) -> None:
        self.types = types

    def log_evidence(self, profile: HeadProfile, prompts: Sequence[str] | None, selectivity: Tensor) -> Tensor:
        """See :meth:`Router.log_evidence`."""
        batch = len(selectivity)
        if not self.types or batch % len(self.types):
            raise HeadRouterError(
                f"FixedRouter needs the type of each of the batch's {batch} samples, and was given {len(self.types)}. "
                "Set router.types to one name a sample before the batch."
            )
        if unknown := set(self.types) - set(profile.types):
            raise ProfileMismatchError(
                f"FixedRouter was given the types {sorted(unknown)}, profile {profile.name!r} has "
                f"{list(profile.types)}."
            )
        given = torch.tensor([profile.types.index(name) for name in self.types], device=selectivity.device)
        given = given.repeat_interleave(batch // len(self.types))
        evidence = selectivity.new_full((batch, len(profile.types)), -torch.inf)
        return evidence.scatter(1, given[:, None], 0.0)
