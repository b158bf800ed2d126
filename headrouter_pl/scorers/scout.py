"""A pooled first pass that reads the question."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from headrouter_pl.errors import ConfigurationError
from headrouter_pl.functional import Queries
from headrouter_pl.scorers.base import Probe, Scorer, ScoringInputs


class ScoutScorer(Scorer):
    """Mean attention of all heads in a scout pass: deep layers of the same decoder, on averaged audio.

    This project's; no paper has it. Early layers hardly look at the question, so that scores which are to depend on it
    must come from deep ones; pooled audio makes these affordable before the model's own pass, which can then prune
    early. See :class:`Probe` for the pass.

    Args:
        pool: Audio tokens a group.
        layers: The layers whose attention is averaged; None for the last one of the first 73 % of the depth.
        queries: ``"last"`` for the last prompt token, which knows the question in deep layers; ``"prompt"`` averages
            over the question's tokens, ``"max"`` takes the one that looks most.
        rotary: Queries and keys after the rotary embedding, as the model itself uses them.
    """

    def __init__(
        self,
        pool: int = 4,
        layers: Sequence[int] | None = None,
        queries: Queries = "last",
        rotary: bool = True,
    ) -> None:
        if pool < 1:
            raise ConfigurationError(f"pool must be at least 1, got {pool}.")
        layers = None if layers is None else tuple(layers)
        self.probe = Probe(rotary=rotary, queries=queries, keys="audio", layers=layers, pool=pool)

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        assert inputs.attention is not None
        return inputs.attention.mean(1)
