"""Evenly spaced tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from headrouter_pl.scorers.base import Scorer, ScoringInputs


class StrideScorer(Scorer):
    """Keeps evenly spaced tokens (AudioMarathon calls it ``frame``)."""

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        seen = inputs.audio_mask.sum(1, keepdim=True).clamp(min=1)
        counts = inputs.counts[:, None]
        steps = torch.arange(inputs.audio_mask.shape[1] + 1, device=inputs.audio_mask.device)
        # Token j is the k-th one kept where floor(j * counts / seen) steps up to k.
        return (steps * counts // seen).diff(dim=1).to(torch.float32)
