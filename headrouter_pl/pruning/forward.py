"""What the engine knows of one forward through the hooked model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from headrouter_pl.pruning.caches import CompactKeys
from headrouter_pl.pruning.compaction import Rows
from headrouter_pl.pruning.layout import TokenLayout

if TYPE_CHECKING:
    from headrouter_pl.pruning.engine import PruningEngine


@dataclass(eq=False)
class Forward:
    """One forward through the hooked model.

    Attributes:
        engine: Whose it is.
        module: The module it entered by.
        length: Positions L of its sequence.
        layout: Where its tokens are; None where it holds no audio (decoding).
        past: Tokens in the cache before this forward's; known where there is a layout.
        counts: Long tensor ``[B]`` on the CPU, audio tokens to keep; None without a layout.
        prompts: Text of each sample's prompt, or None.
        measured: Whether the scorer's inputs are wanted.
        probing: Whether the probed layers are read in this forward.
        queries: Gathered queries of each probed layer, ``[B, Q, H, d]``.
        keys: Keys of each probed layer, ``[B, N or L, Hkv, d]``.
        rotary: ``(cos, sin)`` of each probed layer, where asked for.
        embeddings: The audio tokens as they enter layer 0, ``[B, N, d]``, where asked for.
        attention: What a scout pass measured, float32 ``[B, P, N]``.
        positions: In a scout pass, the position in the input of each of its own, ``[B, L]``.
        scouted: Layers and rows of the scout pass; 0 where there was none.
        cached: Whether there is a KV cache; known from layer K on.
        rows: Rows that go through the layers from K on; None where all do.
        full_hidden: Input of the layer at work, full-length.
        upper_keys: Keys that the layers from K on hold, this forward's included; None where nothing was ever dropped.
        lower_keys: The same of the layers below K; None where nothing was evicted there.
        masks: Masks made so far: from which, for sliding windows or not, and the result.
        total: Positions of the full sequence, this forward's included; known from layer K on, or where keys were
            evicted.
        outer: The forward of another engine that this one runs in, if any.
    """

    engine: PruningEngine
    module: nn.Module
    length: int
    layout: TokenLayout | None = None
    past: int = 0
    counts: Tensor | None = None
    prompts: Sequence[str] | None = None
    measured: bool = False
    probing: bool = False
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    rotary: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    embeddings: Tensor | None = None
    attention: Tensor | None = None
    positions: Tensor | None = None
    scouted: tuple[int, int] = (0, 0)
    cached: bool = False
    rows: Rows | None = None
    full_hidden: Tensor | None = None
    upper_keys: CompactKeys | None = None
    lower_keys: CompactKeys | None = None
    masks: list[tuple[Any, bool, Tensor | None]] = field(default_factory=list)
    total: int = 0
    outer: Forward | None = None

    @property
    def drops(self) -> bool:
        """Whether any audio token is to be dropped."""
        return self.layout is not None and self.counts is not None and bool((self.counts < self.layout.seen).any())
