"""The engine: where each token is, which rows go on, and what was kept."""

from headrouter_pl.pruning.pruner import AudioTokenPruner
from headrouter_pl.pruning.report import PruningReport, SampleReport

__all__ = ["AudioTokenPruner", "PruningReport", "SampleReport"]
