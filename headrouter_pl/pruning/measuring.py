"""Measurements by the pruner's hooks: attention without pruning, and what dropping chosen tokens does to answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headrouter_pl.models import LalmHandle
from headrouter_pl.models.answer_logits import answer_logits
from headrouter_pl.pruning.compaction import Rows
from headrouter_pl.pruning.engine import Forward, PruningEngine
from headrouter_pl.pruning.prompts import PromptReader
from headrouter_pl.pruning.report import PruningReport
from headrouter_pl.scorers import Probe, Scorer, ScoringInputs

__all__ = ["DroppingEngine", "Measured", "ObservingEngine", "measure_attention"]


@dataclass(frozen=True, eq=False)
class Measured:
    """Probe attention of one prefill. B samples, P probed heads (layer by layer), N audio tokens (padded).

    Attributes:
        attention: Float32 tensor ``[B, P, N]``.
        audio_mask: Bool tensor ``[B, N]`` on the same device, False for padding.
        prompts: Text of each sample's prompt, or None without a reader of prompts.
    """

    attention: Tensor
    audio_mask: Tensor
    prompts: Sequence[str] | None


class _Unscored(Scorer):
    """Asks for attention at most; which tokens are kept is decided without it."""

    def __init__(self, probe: Probe | None = None, needs_prompts: bool = False) -> None:
        self.probe = probe
        self.needs_prompts = needs_prompts

    def score(self, inputs: ScoringInputs) -> Tensor:
        return inputs.audio_mask.float()


class ObservingEngine(PruningEngine):
    """Measures attention as a pruner would, and drops nothing: the model's outputs stay bit-identical.

    Args:
        handle: The model.
        probe: What is measured, at which layers.
        receive: Called with what was measured, once a prefill, before the layers above the probed ones run; after a
            scout pass, above layer 0.
        prompts: Turns token ids into prompt texts; None where they are not wanted.
        report: Where each prefill is recorded, as one that keeps all tokens.
    """

    def __init__(
        self,
        handle: LalmHandle,
        probe: Probe,
        receive: Callable[[Measured], None],
        *,
        prompts: PromptReader | None = None,
        report: PruningReport | None = None,
    ) -> None:
        above = 1 if probe.pool is not None else max(probe.layers or (0,)) + 1
        super().__init__(
            handle,
            _Unscored(probe, prompts is not None),
            layer=max(above, handle.lowest_layer),
            keep_ratio=1.0,
            keep_tokens=None,
            report=PruningReport() if report is None else report,
            prompts=prompts,
        )
        self.receive = receive

    def _measures(self, forward: Forward) -> bool:
        return True  # although nothing is dropped

    def _choose(self, forward: Forward, hidden: Tensor) -> Rows | None:
        rows = super()._choose(forward, hidden)
        assert forward.layout is not None
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            attention = self.prober.attention(forward)
        forward.attention = None
        assert attention is not None
        self.receive(
            Measured(attention, forward.layout.audio_valid.to(attention.device, non_blocking=True), forward.prompts)
        )
        return rows


class _Enough(Exception):  # noqa: N818 (not an error)
    """Ends a forward whose upper layers nobody needs."""


@torch.no_grad()
def measure_attention(
    handle: LalmHandle,
    inputs: Mapping[str, Any],
    probe: Probe,
) -> Measured | None:
    """Probe attention of one batch; the model's own pass ends where it is measured.

    Args:
        handle: The model.
        inputs: What its forward takes.
        probe: What is measured, at which layers.

    Returns:
        What was measured, or None for a batch without audio.
    """
    found: list[Measured] = []

    def receive(measured: Measured) -> None:
        found.append(measured)
        raise _Enough

    with ObservingEngine(handle, probe, receive), suppress(_Enough):
        handle.model(**inputs, use_cache=False)
    return found[0] if found else None


class DroppingEngine(PruningEngine):
    """Drops audio tokens of the caller's choice, and tells what that does to the answers.

    Args:
        handle: The model.
        layer: The prune layer K.
    """

    def __init__(self, handle: LalmHandle, layer: int) -> None:
        super().__init__(handle, _Unscored(), layer=layer, keep_ratio=None, keep_tokens=1, report=PruningReport())
        self._labels: Tensor | None = None
        self._dropped: Tensor | None = None

    @torch.no_grad()
    def answer_nll(self, inputs: Mapping[str, Any], labels: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of each sample's answer, in nats per answer token.

        Args:
            inputs: What the model's forward takes, without labels.
            labels: Long tensor ``[B, L]``, -100 outside the answers; every sample has one.
            dropped: Bool tensor ``[B, N]`` on the CPU: audio tokens to drop from layer K on; none if None.

        Returns:
            Float32 tensor ``[B]``.
        """
        model = self.handle.model
        self._labels, self._dropped = labels, dropped
        self.report.clear()
        with answer_logits(model, labels) as (following, answers), nullcontext() if dropped is None else self:
            logits = model(**inputs, use_cache=False).logits.float()
        nll = F.cross_entropy(logits, following.to(logits.device), reduction="none")
        rows = answers.nonzero()[:, 0].to(logits.device)
        sums = nll.new_zeros(len(labels)).index_add(0, rows, nll)
        return sums / answers.sum(1).to(logits.device)

    def _lay_out(self, forward: Forward, input_ids: Tensor | None, batch: int, given: Mapping[str, Any]) -> None:
        # The model is not given them: it would compute a loss over all logits.
        super()._lay_out(forward, input_ids, batch, {**given, "labels": self._labels})
        if forward.layout is not None:
            assert self._dropped is not None
            assert forward.counts is not None
            layout = forward.layout
            required = layout.required | (layout.audio_valid & ~self._dropped)
            forward.layout = replace(layout, required=required)
            forward.counts = torch.maximum(forward.counts, required.sum(1))  # one at least
