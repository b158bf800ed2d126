"""FastV: the last token's attention."""

from __future__ import annotations

from torch import Tensor

from headrouter_pl.scorers.base import Probe, Scorer, ScoringInputs


class FastVScorer(Scorer):
    """Mean attention of all heads from the last prompt token (FastV, arXiv 2403.06764).

    Args:
        rotary: False gives its position-agnostic variant, with queries and keys from before the rotary embedding.
    """

    def __init__(self, rotary: bool = True) -> None:
        self.probe = Probe(rotary=rotary, queries="last", keys="all")

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        assert inputs.attention is not None
        return inputs.attention.mean(1)
