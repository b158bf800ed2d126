"""Head-routed token importance."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from headrouter_pl.errors import ConfigurationError, ProfileMismatchError
from headrouter_pl.functional import Queries, log_attention, selectivity, smooth_over_time, token_importance
from headrouter_pl.profiles import HeadProfile, find_shipped, fingerprint
from headrouter_pl.routers import Router, get_router
from headrouter_pl.routers.prompt import PromptRouter
from headrouter_pl.scorers.base import Probe, Scorer, ScoringInputs

if TYPE_CHECKING:
    from headrouter_pl.models import LalmHandle


class HeadRouterScorer(Scorer):
    """Weighted mean over heads of pre-rotary probe attention, the weights routed per sample (arXiv 2604.23717).

    Args:
        profile: A :class:`HeadProfile`, its name or path, or ``"auto"`` for the one shipped for the model and prune
            layer, where there is one, else ``"generic"``.
        router: A name of :data:`headrouter_pl.routers.ROUTERS`, a router, or a fitted :class:`PromptRouter`.
        queries: ``"prompt"`` averages over the question's tokens (this project's choice), ``"last"`` takes the last,
            ``"max"`` the one that looks most; None for those that the profile was fitted on.

    Raises:
        ConfigurationError: If the profile was fitted on other queries.
    """

    def __init__(
        self,
        profile: str | HeadProfile = "auto",
        router: str | Router | PromptRouter = "joint",
        queries: Queries | None = None,
    ) -> None:
        self.auto = isinstance(profile, str) and profile == "auto"
        name = "generic" if self.auto else profile
        self.profile = name if isinstance(name, HeadProfile) else HeadProfile.load(name)
        self.router = get_router(router)
        self.queries = queries
        self.probe: Probe = _probe_of(self.profile, queries)
        self.needs_prompts = self.router.needs_prompts

    def for_model(self, handle: LalmHandle, layer: int) -> Scorer:
        """With ``profile="auto"``: a copy with the profile that is shipped for the model.

        Raises:
            ProfileMismatchError: If the model lacks layers that the profile was fitted at.
        """
        if max(self.profile.layers or (0,)) >= handle.num_layers:
            raise ProfileMismatchError(
                f"Profile {self.profile.name!r} was fitted at layers {list(self.profile.layers or ())}, and the model "
                f"has {handle.num_layers}. Calibrate one for this model, or take profile='generic'."
            )
        found = find_shipped(handle, layer) if self.auto else None
        if found is None:
            return self
        chosen = copy.copy(self)
        chosen.profile, chosen.probe = found, _probe_of(found, self.queries)
        return chosen

    def bind(self, handle: LalmHandle, layers: Sequence[int]) -> None:
        """Refuses a model whose heads the profile does not fit."""
        sizes = fingerprint(handle, layers)
        self.profile.check(handle.family.model_type, layers, handle.num_heads(layers[0])[0], sizes)

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        assert inputs.attention is not None
        inputs.selectivity = selectivity(inputs.attention, inputs.audio_mask[:, None])
        inputs.probabilities = self.router.route(self.profile, inputs.prompts, inputs.selectivity)
        inputs.types = self.profile.types
        inputs.families = self.profile.family_of(inputs.probabilities)
        inputs.head_weights = self.profile.mix(inputs.probabilities, inputs.selectivity)
        features = inputs.attention
        if self.profile.features == "log":
            features = log_attention(features, inputs.audio_mask[:, None])
        importance = token_importance(features, inputs.head_weights)
        if self.profile.smoothing:
            importance = smooth_over_time(importance, inputs.audio_mask, self.profile.smoothing)
        return importance


def _probe_of(profile: HeadProfile, queries: Queries | None) -> Probe:
    """The attention that a profile's weights and centroids are for; of one that has none, any."""
    if queries not in (None, profile.queries) and profile.num_probed is not None:
        raise ConfigurationError(
            f"Profile {profile.name!r} was fitted on queries={profile.queries!r}, and says nothing of {queries!r}. Fit "
            "one on those, or take profile='generic'."
        )
    return Probe(profile.rotary, queries or profile.queries, layers=profile.layers, pool=profile.pool)
