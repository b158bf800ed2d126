"""Tensors in, tensors out: the arithmetic of the method, free of transformers and of Lightning."""

from headrouter_pl.functional.attention import Queries, apply_rotary, probe_attention
from headrouter_pl.functional.routing import (
    gaussian_log_gates,
    log_attention,
    selectivity,
    smooth_over_time,
    token_importance,
)
from headrouter_pl.functional.selection import keep_counts, select_tokens, spread_evenly

__all__ = [
    "Queries",
    "apply_rotary",
    "gaussian_log_gates",
    "keep_counts",
    "log_attention",
    "probe_attention",
    "select_tokens",
    "selectivity",
    "smooth_over_time",
    "spread_evenly",
    "token_importance",
]
