"""Hypothesis strategies that several tests draw from."""

from __future__ import annotations

from hypothesis import strategies as st


def _with_audio(rows: list[list[int]]) -> list[list[int]]:
    # Where no clip has two tokens, Qwen2-Audio takes its placeholders for unexpanded ones, and counts positions anew:
    # a cached step of the stock model then differs from its own pass without a cache.
    return rows if any(tokens > 1 for row in rows for tokens in row) else [[3], *rows]


clips = st.lists(st.lists(st.integers(1, 30), max_size=2), min_size=1, max_size=4).map(_with_audio)
"""Clips of a batch for `tiny.inputs`: samples with none to two, and at least one with two tokens."""
