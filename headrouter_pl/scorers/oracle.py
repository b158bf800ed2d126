"""The tokens where the answer is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.functional import spread_evenly
from headrouter_pl.scorers.base import Scorer, ScoringInputs


class OracleScorer(Scorer):
    """Keeps the evidence that is known to hold the answer: a ceiling of scoring, and no method.

    Evidence comes first, evenly spaced where there is more of it than the budget; what is left of the budget is evenly
    spaced over the other tokens, as :class:`~headrouter_pl.scorers.StrideScorer` would have it.

    Attributes:
        evidence: For each sample of the next batch, its spans ``(first, last)`` of audio tokens, ``last`` exclusive,
            counted over all clips of the sample. To be set before every batch; one list may serve a whole multiple of
            its samples (beams, returned sequences).
    """

    def __init__(self) -> None:
        self.evidence: Sequence[Sequence[tuple[int, int]]] | None = None

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        marked = self._mark(inputs.audio_mask)
        chosen = spread_evenly(marked, inputs.counts)
        others = spread_evenly(inputs.audio_mask & ~marked, inputs.counts - chosen.sum(1))
        return 2.0 * chosen + 1.0 * others

    def _mark(self, audio_mask: Tensor) -> Tensor:
        """Bool tensor ``[B, N]``, True for evidence."""
        batch = len(audio_mask)
        if not self.evidence or batch % len(self.evidence):
            given = "none" if self.evidence is None else f"of {len(self.evidence)} samples"
            raise HeadRouterError(
                f"The oracle needs the evidence of each of the batch's {batch} samples, and was given {given}. Set "
                "scorer.evidence to one list of (first, last) spans a sample before the batch."
            )
        marked = torch.zeros(audio_mask.shape, dtype=torch.bool)
        every = batch // len(self.evidence)
        for row, seen in enumerate(audio_mask.sum(1).tolist()):
            for first, last in self.evidence[row // every]:
                if not 0 <= first <= last <= seen:
                    raise HeadRouterError(
                        f"The evidence ({first}, {last}) of sample {row} does not lie in its {seen} audio tokens."
                    )
                marked[row, first:last] = True
        return marked.to(audio_mask.device, non_blocking=True)
