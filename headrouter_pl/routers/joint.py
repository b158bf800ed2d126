"""Routing by the prompt, and by prompt and audio together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from headrouter_pl.errors import ProfileMismatchError
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers.base import Router
from headrouter_pl.routers.prompt import PromptRouter
from headrouter_pl.routers.selectivity import SelectivityRouter

UNCERTAIN = 0.5
"""A prompt whose likeliest type has less than this probability cannot be routed by its words."""


class PromptPrior(Router):
    """Routing by the prompt alone, by what a :class:`PromptRouter` (a scikit-learn classifier) says of it.

    Warns once of a prompt that it cannot route, where that matters: with head weights per type, and no centroids by
    which the audio could decide.

    Args:
        classifier: A fitted :class:`PromptRouter`; the shipped one if None.
        cache_size: Prompts whose probabilities are remembered.
    """

    needs_prompts = True

    def __init__(self, classifier: PromptRouter | None = None, cache_size: int = 4096) -> None:
        self.classifier = classifier
        self.cache_size = cache_size
        self._probabilities = lru_cache(cache_size)(self._classify)
        self._fitted: object = None  # the weights that the remembered probabilities are of
        self._warned = False

    def _classify(self, prompt: str) -> tuple[dict[str, float], dict[str, float]]:
        router = PromptRouter.default() if self.classifier is None else self.classifier
        types = dict(zip(router.types_.tolist(), router.predict_type_proba([prompt])[0].tolist(), strict=True))
        families = dict.fromkeys(router.classes_.tolist(), 0.0)
        for name, probability in types.items():  # what predict_proba sums, without reading the prompt again
            families[router.families_[name]] += probability
        return types, families

    def log_evidence(self, profile: HeadProfile, prompts: Sequence[str] | None, selectivity: Tensor) -> Tensor:
        """See :meth:`Router.log_evidence`."""
        if prompts is None:
            return selectivity.new_zeros(len(selectivity), len(profile.types))
        if (fitted := getattr(self.classifier, "coef_", None)) is not self._fitted:  # anew
            self._probabilities.cache_clear()
            self._fitted = fitted
        rows = []
        for prompt in prompts:
            types, families = self._probabilities(prompt)
            if set(profile.types) <= set(types):
                rows.append([types[name] for name in profile.types])
            elif set(profile.types) <= set(families):
                rows.append([families[name] for name in profile.types])
            else:
                raise ProfileMismatchError(
                    f"The prompt router knows the types {sorted(types)}, profile {profile.name!r} has "
                    f"{list(profile.types)}. Fit PromptRouter on prompts labelled with the profile's types."
                )
        if profile.weights is not None and profile.centroids is None:
            self._warn_if_uncertain(profile, prompts, rows)
        return torch.tensor(rows, dtype=selectivity.dtype).log().to(selectivity.device, non_blocking=True)

    def _warn_if_uncertain(self, profile: HeadProfile, prompts: Sequence[str], rows: list[list[float]]) -> None:
        for prompt, row in zip(prompts, rows, strict=True):
            if max(row) < UNCERTAIN and not self._warned:
                self._warned = True
                shares = ", ".join(f"{name} {value:.2f}" for name, value in zip(profile.types, row, strict=True))
                warnings.warn(
                    f"Routing is too uncertain to trust for the prompt {prompt!r} ({shares}): head weights of all "
                    "types are mixed. Fit PromptRouter on prompts like yours, or take a profile with centroids.",
                    UserWarning,
                    stacklevel=2,
                )

    # For copies and pickles: the remembered probabilities can be neither.
    def __reduce__(self) -> tuple[type[PromptPrior], tuple[PromptRouter | None, int]]:
        return type(self), (self.classifier, self.cache_size)


class JointRouter(Router):
    r"""Prompt as prior, audio as likelihood: :math:`\pi_c \propto p(c|t) \exp(-\lVert s-\mu_c \rVert^2/2\sigma^2)`.

    The combination is this project's; the paper routes by selectivity alone.

    Args:
        prompt: The prior; the shipped classifier if None.
        selectivity: The likelihood.
    """

    needs_prompts = True

    def __init__(self, prompt: PromptPrior | None = None, selectivity: SelectivityRouter | None = None) -> None:
        self.prompt = prompt or PromptPrior()
        self.selectivity = selectivity or SelectivityRouter()

    def log_evidence(self, profile: HeadProfile, prompts: Sequence[str] | None, selectivity: Tensor) -> Tensor:
        """See :meth:`Router.log_evidence`."""
        prior = self.prompt.log_evidence(profile, prompts, selectivity)
        return prior + self.selectivity.log_evidence(profile, prompts, selectivity)
