"""DART: tokens unlike a few pivots."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headrouter_pl.errors import ConfigurationError
from headrouter_pl.scorers.base import Scorer, ScoringInputs


class DartScorer(Scorer):
    """Pivot tokens and those that duplicate them least (DART, arXiv 2502.11494). Reads no attention.

    The pivots are the tokens whose keys have the largest L1 norm. After that every pivot in turn takes an equal share
    of the budget: of the tokens that are left, those with the smallest cosine similarity to it.

    Differs from the published code: all pivots are audio tokens (there half of them are text), similarity is that of
    the pre-rotary keys (there of hidden states), and what the shares leave of the budget, by rounding, goes to the
    tokens least similar to any pivot (there it stays unused).

    Args:
        pivots: Number of pivots; a sample with a smaller count keeps the strongest of them.
    """

    reads_keys = True

    def __init__(self, pivots: int = 8) -> None:
        if pivots < 1:
            raise ConfigurationError(f"pivots must be at least 1, got {pivots}.")
        self.pivots = pivots

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        assert inputs.keys is not None
        mask = inputs.audio_mask
        norm = inputs.keys.abs().sum(-1).masked_fill(~mask, -torch.inf)
        index = norm.argsort(dim=1, descending=True, stable=True)[:, : self.pivots]
        number = index.shape[1]
        true = mask.gather(1, index)
        units = F.normalize(inputs.keys, dim=-1)
        similarity = units.gather(1, index[..., None].expand(-1, -1, units.shape[-1])) @ units.transpose(1, 2)
        strength = torch.arange(self.pivots, self.pivots - number, -1, device=mask.device, dtype=units.dtype)
        pivot = torch.zeros_like(norm).scatter(1, index, strength.expand(index.shape)).masked_fill(~mask, 0.0)
        left = mask & (pivot == 0)
        share = (inputs.counts - number).clamp(min=0)[:, None] // number
        steps = torch.arange(mask.shape[1], device=mask.device)
        # Over the pivots, 8 at most by default, not over samples or tokens: each takes from what the one before has
        # left, so that none can be done ahead. All of it stays on the device; nothing waits for a result.
        for turn in range(number):
            order = similarity[:, turn].masked_fill(~left, torch.inf).argsort(dim=1, stable=True)
            taken = torch.zeros_like(left).scatter(1, order, steps < share) & left & true[:, turn, None]
            left = left & ~taken
        # Pivots, then what they took, then the rest by the pivot that each is most similar to.
        nearest = similarity.masked_fill(~true[..., None], -torch.inf).amax(1)
        return torch.where(pivot > 0, 2 + pivot, torch.where(left, -nearest, 2.0))
