"""What a pruning method is: it says what it must see, and scores the audio tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from headrouter_pl.models import LalmHandle


@dataclass(frozen=True)
class Probe:
    """Attention that a scorer asks the pruner to measure.

    Attributes:
        rotary: Queries and keys after the rotary embedding instead of before it.
        queries: ``"prompt"`` averages over the prompt's text tokens that follow the audio, ``"last"`` takes the last of
            them. Generated tokens are never queries.
        keys: What the softmax runs over: the sample's audio tokens, or all its tokens as in the model's own attention.
        layers: The probed layers, all below the prune layer; None for the one right below it.
    """

    rotary: bool = False
    queries: Literal["prompt", "last"] = "prompt"
    keys: Literal["audio", "all"] = "audio"
    layers: tuple[int, ...] | None = None


@dataclass
class ScoringInputs:
    """One batch as a scorer sees it. B samples, N audio tokens (padded), P probed heads (layer by layer).

    Attributes:
        audio_mask: Bool tensor ``[B, N]``, False for padding.
        counts: Long tensor ``[B]``, how many tokens will be kept.
        attention: Float32 tensor ``[B, P, N]``, or None where the scorer asked for no probe.
        prompts: The text of each sample's prompt, or None without a tokenizer.
        types: Set by a scorer that routes: names of its T types, for the report.
        probabilities: Set by a scorer that routes: float tensor ``[B, T]``, for the report.
        families: Set by a scorer that routes: ``{"semantic": [B], "acoustic": [B]}``, for the report.
        selectivity: Set by a scorer that measures it: float tensor ``[B, P]``, for the report.
        head_weights: Set by a scorer that weighs heads: float tensor ``[B, P]``, for the report.
    """

    audio_mask: Tensor
    counts: Tensor
    attention: Tensor | None = None
    prompts: Sequence[str] | None = None
    types: tuple[str, ...] = ()
    probabilities: Tensor | None = None
    families: dict[str, Tensor] = field(default_factory=dict)
    selectivity: Tensor | None = None
    head_weights: Tensor | None = None


class Scorer(ABC):
    """A pruning method. A subclass writes :meth:`score`, and sets :attr:`probe` if it reads attention."""

    probe: Probe | None = None
    needs_prompts: bool = False

    def for_model(self, handle: LalmHandle, layer: int) -> Scorer:
        """The scorer to use on a model: this one, or another where the choice depends on the model.

        Called before anything else is asked of the scorer.

        Args:
            handle: The model.
            layer: The prune layer K.
        """
        return self

    def bind(self, handle: LalmHandle, layers: Sequence[int]) -> None:  # noqa: B027 (optional to override)
        """Called once before the first batch, to refuse a model that does not fit.

        Args:
            handle: The model.
            layers: The layers that :attr:`probe` resolved to.
        """

    @abstractmethod
    def score(self, inputs: ScoringInputs) -> Tensor:
        """Scores the audio tokens; the most important ones of each sample are kept.

        Returns:
            Float tensor ``[B, N]``; entries at padding are ignored.
        """
