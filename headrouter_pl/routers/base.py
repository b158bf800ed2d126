"""What a router is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from headrouter_pl.profiles import HeadProfile


class Router(ABC):
    """Gives each sample a probability for each type of a profile."""

    needs_prompts: bool = False

    @abstractmethod
    def log_evidence(self, profile: HeadProfile, prompts: Sequence[str] | None, selectivity: Tensor) -> Tensor:
        """Unnormalised log probabilities of the types.

        Args:
            profile: Whose types are meant.
            prompts: One prompt per sample, or None where no tokenizer is at hand.
            selectivity: Float tensor ``[B, P]`` of the probed heads.

        Returns:
            Float tensor ``[B, T]``.
        """

    def route(self, profile: HeadProfile, prompts: Sequence[str] | None, selectivity: Tensor) -> Tensor:
        """Probabilities of the types, float tensor ``[B, T]`` with rows summing to one."""
        return self.log_evidence(profile, prompts, selectivity).softmax(1)
