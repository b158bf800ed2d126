"""What a pruning method is: it says what it must see, and scores the audio tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from headrouter_pl.functional import Queries

if TYPE_CHECKING:
    from headrouter_pl.models import LalmHandle


SCOUT_DEPTH = 0.73
"""Share of the decoder's layers that a scout pass goes through by default."""


@dataclass(frozen=True)
class Probe:
    """Attention that a scorer asks the pruner to measure.

    It is measured in the model's own pass, below the prune layer; or, with ``pool``, in a *scout pass* of its own
    before it (this project's, no paper has it): the same layers, on a shorter sequence, deep enough that attention
    knows the question. Each contiguous run of audio tokens is averaged in groups of ``pool`` where it enters layer 0; a
    group stands at the position of its middle token, and text stays as it is. Each token of a group gets the group's
    attention. The pass ends with the question; it sees neither earlier turns of a conversation in the cache nor visual
    features that a model adds between layers. It runs without gradients, in the layers' own mode of training or not;
    the model's own pass draws the random numbers that it would draw without it. Forward hooks on layers do not see it,
    those on modules inside of layers do, but for transformers' recorders of hidden states and attentions.

    Attributes:
        rotary: Queries and keys after the rotary embedding instead of before it.
        queries: ``"prompt"`` averages over the prompt's text tokens that follow the audio, ``"last"`` takes the last of
            them, ``"max"`` the one that looks most at an audio token (rows then divided by their sums). Generated
            tokens are never queries.
        keys: What the softmax runs over: the sample's audio tokens, or all its tokens as in the model's own attention.
        layers: The probed layers; None for the one right below the prune layer, below which all must lie. In a scout
            pass they may lie anywhere, and None is the last one of the first 73 % of the depth.
        pool: Audio tokens a group of a scout pass; None for no such pass.
    """

    rotary: bool = False
    queries: Queries = "prompt"
    keys: Literal["audio", "all"] = "audio"
    layers: tuple[int, ...] | None = None
    pool: int | None = None

    def resolve(self, layer: int, num_layers: int) -> tuple[int, ...]:
        """The probed layers, in a model of ``num_layers`` pruned at ``layer``."""
        if self.layers is not None:
            return self.layers
        return (layer - 1,) if self.pool is None else (max(1, round(SCOUT_DEPTH * num_layers)) - 1,)


@dataclass
class ScoringInputs:
    """One batch as a scorer sees it. B samples, N audio tokens (padded), P probed heads (layer by layer).

    Attributes:
        audio_mask: Bool tensor ``[B, N]``, False for padding.
        counts: Long tensor ``[B]``, how many tokens will be kept.
        attention: Float32 tensor ``[B, P, N]``, or None where the scorer asked for no probe.
        keys: Float32 tensor ``[B, N, C]``: pre-rotary keys of the audio tokens at the probed layers, key heads and
            layers side by side; zero at padding. None unless the scorer :attr:`~Scorer.reads_keys`.
        embeddings: Float32 tensor ``[B, N, d]``: the audio tokens as they enter decoder layer 0, which is what the
            projector gave; zero at padding. None unless the scorer :attr:`~Scorer.reads_embeddings`.
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
    keys: Tensor | None = None
    embeddings: Tensor | None = None
    prompts: Sequence[str] | None = None
    types: tuple[str, ...] = ()
    probabilities: Tensor | None = None
    families: dict[str, Tensor] = field(default_factory=dict)
    selectivity: Tensor | None = None
    head_weights: Tensor | None = None


class Scorer(ABC):
    """A pruning method. A subclass writes :meth:`score`, and says here what its inputs must hold.

    Attributes:
        probe: The attention that it reads, or None.
        reads_keys: Whether it reads keys, of the probe's layers; of the layer below the prune layer without a probe.
        reads_embeddings: Whether it reads embeddings.
        needs_prompts: Whether it reads the text of the prompts.
    """

    probe: Probe | None = None
    reads_keys: bool = False
    reads_embeddings: bool = False
    needs_prompts: bool = False

    def for_model(self, handle: LalmHandle, layer: int) -> Scorer:
        """The scorer to use on a model: this one, or another where the choice depends on the model.

        Called once K is known, which by default depends on the :attr:`probe` that is there before, and before anything
        else is asked.

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
