"""Random choice of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from headrouter_pl.scorers.base import Scorer, ScoringInputs


class RandomScorer(Scorer):
    """Keeps tokens at random: the floor of every comparison.

    The draw depends on the seed and the number of audio tokens alone, so that a sample keeps the same tokens whatever
    else is in its batch, in every beam and in every step of generation without a cache.

    Args:
        seed: Seed of the draw.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(inputs.audio_mask.shape[1], generator=generator, dtype=torch.float32, device="cpu")
        return draw.to(inputs.audio_mask.device, non_blocking=True).expand(inputs.audio_mask.shape)
