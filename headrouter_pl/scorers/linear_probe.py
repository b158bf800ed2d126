"""A linear probe on the projector's outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from headrouter_pl import tensorfile
from headrouter_pl.errors import HeadRouterError, ProfileMismatchError
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers import Router, get_router
from headrouter_pl.routers.prompt import PromptRouter
from headrouter_pl.scorers.base import Scorer, ScoringInputs

if TYPE_CHECKING:
    from headrouter_pl.models import LalmHandle

FORMAT = "headrouter-linear-probe-1"


class LinearProbeScorer(Scorer):
    r"""A classifier of evidence for each type of task, on the tokens as they enter the decoder: a control.

    It reads no attention: what it finds as well, a head profile owes to the kind of audio and not to heads. Importance
    is the probability of being evidence, mixed over types by the route:
    :math:`\log \sum_c \pi_c\,\sigma(w_c \cdot e_j + b_c)`. This project's; no paper has it.

    Args:
        weights: Float tensor ``[T, d]``.
        bias: Float tensor ``[T]``.
        types: Names of the T types.
        families: The family of each, ``"semantic"`` or ``"acoustic"``.
        router: A name of :data:`headrouter_pl.routers.ROUTERS`, a router, or a fitted :class:`PromptRouter`.
            Selectivity says nothing here.
        metadata: How and on what it was fitted, plain strings; ``"model_type"`` is checked.

    Raises:
        HeadRouterError: If shapes and types do not fit each other.
    """

    reads_embeddings = True

    def __init__(
        self,
        weights: Tensor,
        bias: Tensor,
        types: Sequence[str],
        families: Sequence[str],
        router: str | Router | PromptRouter = "prompt",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if weights.dim() != 2 or bias.shape != (len(types),) or len(weights) != len(types):
            raise HeadRouterError(
                f"A linear probe of {len(types)} types needs weights [{len(types)}, d] and bias [{len(types)}], got "
                f"{list(weights.shape)} and {list(bias.shape)}."
            )
        self.weights = weights.detach().float()
        self.bias = bias.detach().float()
        self.metadata = dict(metadata or {})
        # What routers route to: types without head weights.
        self.profile = HeadProfile("linear-probe", types=tuple(types), families=tuple(families))
        self.router = get_router(router)
        self.needs_prompts = self.router.needs_prompts

    def bind(self, handle: LalmHandle, layers: Sequence[int]) -> None:
        """Refuses a model of another type than the probe was fitted on."""
        fitted = self.metadata.get("model_type")
        if fitted is not None and fitted != handle.family.model_type:
            raise ProfileMismatchError(
                f"The linear probe was fitted on model type {fitted!r}, the model is {handle.family.model_type!r}. "
                "Fit one on this model."
            )

    def score(self, inputs: ScoringInputs) -> Tensor:
        """See :meth:`Scorer.score`."""
        embeddings = inputs.embeddings
        assert embeddings is not None
        if embeddings.shape[-1] != self.weights.shape[1]:
            raise ProfileMismatchError(
                f"The linear probe was fitted on {self.weights.shape[1]} channels, the decoder has "
                f"{embeddings.shape[-1]}. Fit one on this model."
            )
        nothing = embeddings.new_zeros(len(embeddings), 0)  # selectivity of no heads
        inputs.probabilities = self.router.route(self.profile, inputs.prompts, nothing)
        inputs.types = self.profile.types
        inputs.families = self.profile.family_of(inputs.probabilities)
        logits = F.linear(embeddings, self.weights.to(embeddings), self.bias.to(embeddings))
        # In logarithms, which still tell tokens apart where the sigmoid is 1.
        return torch.logsumexp(F.logsigmoid(logits) + inputs.probabilities.log()[:, None], -1)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, types and metadata in its header.

        The file appears only once it is whole.

        Raises:
            HeadRouterError: If it cannot be written.
        """
        header = {
            "format": FORMAT,
            "types": json.dumps(self.profile.types),
            "families": json.dumps(self.profile.families),
            "metadata": json.dumps(self.metadata, sort_keys=True),
        }
        tensorfile.write(path, {"weights": self.weights, "bias": self.bias}, header)

    @classmethod
    def load(cls, path: str | Path, router: str | Router | PromptRouter = "prompt") -> LinearProbeScorer:
        """Loads a file that :meth:`save` wrote.

        Args:
            path: The file.
            router: See the class.

        Raises:
            HeadRouterError: If there is no such file, or it is not a linear probe, or not whole.
        """
        header, tensors = tensorfile.read(path)
        if header.get("format") != FORMAT:
            raise HeadRouterError(
                f"{path} is not a linear probe: format {header.get('format')!r}, expected {FORMAT!r}."
            )
        try:
            weights, bias = tensors["weights"], tensors["bias"]
            types, families = tuple(json.loads(header["types"])), tuple(json.loads(header["families"]))
            metadata = dict(json.loads(header["metadata"]))
        except (KeyError, TypeError, ValueError) as error:
            raise HeadRouterError(
                f"{path} is a linear probe with a broken header or without a tensor: {error!r}"
            ) from error
        return cls(weights, bias, types, families, router, metadata)
