"""Evenly spaced tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from headrouter_pl.functional import spread_evenly
from headrouter_pl.scorers.base import Scorer, ScoringInputs


class StrideScorer(Scorer):
    """Keeps evenly spaced tokens (AudioMarathon calls it ``frame``)."""

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        return spread_evenly(inputs.audio_mask, inputs.counts).to(torch.float32)
