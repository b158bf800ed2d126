"""The best tokens of every stretch of time."""

from __future__ import annotations

import torch
from torch import Tensor

from headrouter_pl.errors import ConfigurationError
from headrouter_pl.scorers.base import Probe, Scorer, ScoringInputs


class SegmentwiseScorer(Scorer):
    """Top-k of attention in each time segment (Segmentwise Pruning in Audio-Language Models, arXiv 2511.14293).

    A sample's audio is cut into S segments of equal length, and each keeps its ``count // S`` most attended tokens.

    Differs from the published form, which cuts the encoder's output before the decoder reads it: the attention is that
    of :class:`~headrouter_pl.scorers.FastVScorer`, so that the two differ by the segments alone. Where S does not
    divide the count, the tokens left to choose are the most attended ones of the whole sample. The default of S is this
    project's.

    Args:
        segments: Number S of segments. A sample with a count below S keeps its most attended tokens, as without
            segments.
    """

    def __init__(self, segments: int = 10) -> None:
        if segments < 1:
            raise ConfigurationError(f"segments must be at least 1, got {segments}.")
        self.segments = segments
        self.probe = Probe(rotary=True, queries="last", keys="all")

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        assert inputs.attention is not None
        attention = inputs.attention.mean(1)
        steps = torch.arange(attention.shape[1], device=attention.device)
        seen = inputs.audio_mask.sum(1, keepdim=True).clamp(min=1)
        segment = (steps * self.segments // seen).masked_fill(~inputs.audio_mask, self.segments)
        # By segment, within it by attention; stable, so that of equals the earlier token comes first.
        order = attention.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, segment.gather(1, order).argsort(dim=1, stable=True))
        ordered = segment.gather(1, order).contiguous()
        rank = torch.empty_like(order).scatter(1, order, steps - torch.searchsorted(ordered, ordered))
        # Attention is at most 1, so the best of a segment stand above all others.
        return attention + 2 * (rank < inputs.counts[:, None] // self.segments)
