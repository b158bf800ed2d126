"""Pruning methods, one per file. To add one: a file with a :class:`Scorer` and a line in :data:`SCORERS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headrouter_pl.errors import unknown_name
from headrouter_pl.scorers.base import Probe, Scorer, ScoringInputs
from headrouter_pl.scorers.dart import DartScorer
from headrouter_pl.scorers.fastv import FastVScorer
from headrouter_pl.scorers.headrouter import HeadRouterScorer
from headrouter_pl.scorers.linear_probe import LinearProbeScorer
from headrouter_pl.scorers.oracle import OracleScorer
from headrouter_pl.scorers.random import RandomScorer
from headrouter_pl.scorers.scout import ScoutScorer
from headrouter_pl.scorers.segmentwise import SegmentwiseScorer
from headrouter_pl.scorers.stride import StrideScorer

SCORERS: dict[str, Callable[..., Scorer]] = {
    "dart": DartScorer,
    "fastv": FastVScorer,
    "fastv-norope": partial(FastVScorer, rotary=False),
    "headrouter": HeadRouterScorer,
    "oracle": OracleScorer,
    "random": RandomScorer,
    "scout": ScoutScorer,
    "segmentwise": SegmentwiseScorer,
    "stride": StrideScorer,
}
"""Scorers by the name that ``HeadRouterCallback(scorer=...)`` takes."""


def get_scorer(scorer: str | Scorer, **options: object) -> Scorer:
    """The scorer of that name, or the given one.

    Args:
        scorer: A key of :data:`SCORERS`, or a scorer.
        options: ``profile`` and ``router``, for ``"headrouter"`` alone.
    """
    if isinstance(scorer, Scorer):
        return scorer
    if scorer not in SCORERS:
        raise unknown_name("scorer", str(scorer), SCORERS)
    return SCORERS[scorer](**options) if SCORERS[scorer] is HeadRouterScorer else SCORERS[scorer]()


__all__ = [
    "SCORERS",
    "DartScorer",
    "FastVScorer",
    "HeadRouterScorer",
    "LinearProbeScorer",
    "OracleScorer",
    "Probe",
    "RandomScorer",
    "Scorer",
    "ScoringInputs",
    "ScoutScorer",
    "SegmentwiseScorer",
    "StrideScorer",
    "get_scorer",
]
