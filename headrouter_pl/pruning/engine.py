"""Drops audio tokens inside a stock model, by hooks.

The sequence stays full-length between layers, so that the final norm, the head, labels, losses and recorders see what
they always see. Around every layer from K on, the kept rows are gathered, worked on, and scattered back; a dropped
position keeps the value it had before layer K. Nothing below K changes.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headrouter_pl.errors import AudioMaskError, HeadRouterError
from headrouter_pl.functional import keep_counts, select_tokens
from headrouter_pl.models import LalmHandle
from headrouter_pl.models.caches import cache_in
from headrouter_pl.pruning.arguments import bind, parameter_names
from headrouter_pl.pruning.caches import FORWARD, CompactKeys, evict, held_mask_sizes
from headrouter_pl.pruning.compaction import Rows, compact_mask
from headrouter_pl.pruning.cost import LayerCost
from headrouter_pl.pruning.forward import Forward
from headrouter_pl.pruning.generation import PROMPT_LENGTH, unwrap_generate, wrap_generate
from headrouter_pl.pruning.layout import TokenLayout, find_audio
from headrouter_pl.pruning.prober import Prober
from headrouter_pl.pruning.prompts import PromptReader
from headrouter_pl.pruning.refusals import (
    refuse_forward,
    refuse_hooks_inside_checkpoints,
    refuse_late_probe,
    refuse_layers,
    refuse_length,
    refuse_mask,
    refuse_scout,
)
from headrouter_pl.pruning.report import PrefillRecord, PruningReport
from headrouter_pl.pruning.uncompiled import UNCOMPILED
from headrouter_pl.scorers import Scorer, ScoringInputs

# Arguments of a decoder layer, beside the hidden states, that hold one row per position: [.., L, d].
STATES = ("per_layer_input", "position_embeddings")


class PruningEngine:
    """The hooks of one pruner on one model, on it from :meth:`attach` to :meth:`detach`, or as a context manager.

    Args:
        handle: The model.
        scorer: Scores the audio tokens.
        layer: The prune layer K.
        keep_ratio: Share of the audio tokens to keep, or None with ``keep_tokens``.
        keep_tokens: Number of audio tokens to keep, or None with ``keep_ratio``.
        report: Where each prefill is recorded.
        prompts: Turns token ids into prompt texts; None without a tokenizer.
        audio_mask: Bool tensor ``[B, L]`` where the audio is, for forwards that do not show it.
        evict_early: Whether the dropped tokens leave the caches of the layers below K too, after each prefill.
    """

    def __init__(
        self,
        handle: LalmHandle,
        scorer: Scorer,
        *,
        layer: int,
        keep_ratio: float | None,
        keep_tokens: int | None,
        report: PruningReport,
        prompts: PromptReader | None = None,
        audio_mask: Tensor | None = None,
        evict_early: bool = False,
    ) -> None:
        self.handle = handle
        self.scorer = scorer
        self.layer = layer
        self.keep_ratio = keep_ratio
        self.keep_tokens = keep_tokens
        self.report = report
        self.prompts = prompts
        self.evict_early = evict_early
        if audio_mask is not None and (not isinstance(audio_mask, Tensor) or audio_mask.dim() != 2):
            raise AudioMaskError(
                f"audio_mask must be a bool tensor [B, L], got {getattr(audio_mask, 'shape', audio_mask)}."
            )
        self.audio_mask = None if audio_mask is None else audio_mask.bool().cpu()
        self.prober = Prober(handle, scorer, layer)
        self.probed = self.prober.probed
        refuse_layers(handle, layer, self.probed)
        scorer.bind(handle, self.probed)  # before K is blamed for a profile of another model
        if self.prober.pool is None:
            refuse_late_probe(handle, layer, self.probed)
        else:
            refuse_scout(handle, scorer, self.probed)
        self._costs = tuple(LayerCost.of(handle, index) for index in range(handle.num_layers))
        self._inputs = {module: parameter_names(module, "input_ids") for module in handle.inputs}
        self._hooks: list[RemovableHandle] = []
        self._wrapped = False  # whether `generate` is wrapped
        self._warned = False  # of prompts that cannot be read
        self._audio_mask_met = False  # whether a forward had its length, as the first one must

    # Attaching and detaching

    def __enter__(self) -> PruningReport:
        """Attaches the hooks, and gives what they fill."""
        self.attach()
        return self.report

    def __exit__(self, *exception: object) -> None:
        """Detaches them."""
        self.detach()

    def attach(self) -> None:
        """Registers all hooks; on any error none stays."""
        handle = self.handle
        try:
            UNCOMPILED.enter(self)
            self._wrapped = wrap_generate(handle.model)
            for module in handle.inputs:
                self._hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
            self._hooks.extend(self.prober.attach())
            for index in range(self.layer if self.evict_early else 0):
                narrow = partial(self._narrow, index)
                self._hooks.append(handle.layers[index].register_forward_pre_hook(narrow, with_kwargs=True))
            for index in range(self.layer, handle.num_layers):
                # Not a closure: deepcopy of a hooked model copies what a partial is bound to.
                compact = partial(self._compact, index)
                self._hooks.append(handle.layers[index].register_forward_pre_hook(compact, with_kwargs=True))
                # First, so that recorders and other hooks see the full sequence.
                self._hooks.append(handle.layers[index].register_forward_hook(self._restore, prepend=True))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Removes every trace of the engine from the model."""
        while self._hooks:
            self._hooks.pop().remove()
        UNCOMPILED.leave(self)
        forward = FORWARD.get()
        if forward is not None and forward.engine is self:  # left over by a KeyboardInterrupt
            FORWARD.set(forward.outer)
        if self._wrapped:
            unwrap_generate(self.handle.model)
            self._wrapped = False

    # Around the model

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        outer = FORWARD.get()
        if outer is not None and outer.engine is self:
            if outer.module is not module:
                return  # an inner module of a forward under way
            outer = outer.outer  # that forward never ended: a KeyboardInterrupt
        given = bind(self._inputs[module], args, kwargs)
        input_ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        shown = input_ids if input_ids is not None else embeds
        if shown is None:
            return  # the model's own error is the better one
        forward = Forward(self, module, shown.shape[1], outer=outer)
        if forward.length > 1:  # one position is a step of decoding, without audio
            self._lay_out(forward, input_ids, shown.shape[0], given)
        FORWARD.set(forward)

    def _lay_out(self, forward: Forward, input_ids: Tensor | None, batch: int, given: Mapping[str, Any]) -> None:
        """Reads the batch on the CPU, before its GPU work is queued: one sync, two with a static cache."""
        length = forward.length
        labels, positions, cache = given.get("labels"), given.get("position_ids"), cache_in(given)
        if input_ids is None and self.audio_mask is None and CompactKeys.of(cache) is not None:
            return  # a later turn of a conversation, without audio
        if isinstance(positions, Tensor) and positions.dim() == 3:
            positions = positions[0]  # multimodal rotary: one row an axis
        past = 0 if cache is None else int(cache.get_seq_length())
        ids, mask, labels, positions = _to_cpu(
            input_ids,
            _unpadded(given.get("attention_mask"), length, past),
            labels if _is_matrix(labels) and labels.shape[1] == length else None,
            # A mask of one row says nothing of packing, and at its padding positions may be any.
            positions if _is_matrix(positions) and not _is_matrix(given.get("attention_mask")) else None,
        )
        if self.audio_mask is not None and self.audio_mask.shape[1] == length:
            self._audio_mask_met = True
        elif self.audio_mask is not None and not self._audio_mask_met:
            raise AudioMaskError(f"audio_mask is {list(self.audio_mask.shape)}, the sequence has {length} positions.")
        audio_mask = find_audio(ids, self.handle.audio_token_id, self.audio_mask, type(self.handle.model).__name__)
        if audio_mask.shape[1] != length:
            raise AudioMaskError(f"audio_mask is {list(audio_mask.shape)}, the sequence has {length} positions.")
        if len(audio_mask) != batch:  # beams and returned sequences repeat the samples
            if batch % len(audio_mask):
                raise AudioMaskError(f"audio_mask is of {len(audio_mask)} samples, the batch of {batch}.")
            audio_mask = audio_mask.repeat_interleave(batch // len(audio_mask), 0)
        prompt_length = PROMPT_LENGTH.get()
        prompt_length = None if prompt_length is None else prompt_length - past
        layout = TokenLayout.build(audio_mask, attention_mask=mask, labels=labels, prompt_length=prompt_length)
        if not bool(layout.seen.any()):
            return
        refuse_forward(self.handle.model.config, given, positions, mask)
        counts = keep_counts(layout.seen, keep_ratio=self.keep_ratio, keep_tokens=self.keep_tokens)
        forward.layout, forward.past = layout, past
        forward.counts = torch.maximum(counts, layout.required.sum(1))
        forward.measured = self._measures(forward)
        forward.probing = forward.measured and self.prober.pool is None
        if self.scorer.needs_prompts and self.prompts is not None and ids is not None:
            forward.prompts = self.prompts.read(ids, layout)
        elif self.scorer.needs_prompts and self.prompts is not None and not self._warned:
            self._warned = True
            warnings.warn(
                "The model is given inputs_embeds alone: prompts cannot be read, so routing is by audio alone. Pass "
                "input_ids.",
                UserWarning,
                stacklevel=2,
            )

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        forward = FORWARD.get()
        if forward is not None and forward.engine is self and forward.module is module:
            FORWARD.set(forward.outer)

    def _measures(self, forward: Forward) -> bool:
        """Whether the scorer's inputs are wanted of a prefill with audio."""
        return forward.drops

    def _current(self) -> Forward | None:
        forward = FORWARD.get()
        return forward if forward is not None and forward.engine is self else None

    # At the layers below K, once keys were evicted from them

    def _narrow(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cuts the mask of a layer to the keys that it was left with."""
        forward = self._current()
        if forward is None or (index > 0 and forward.lower_keys is None):
            return None
        given = bind(self.prober.arguments, args, kwargs)
        cache = cache_in(given)
        if index == 0:
            before = CompactKeys.of(cache)
            if before is None or not before.evicted or before.layer != self.layer:
                return None
            past = cache.get_seq_length()
            # A static cache has its length on the device.
            past = before.current if isinstance(past, Tensor) else int(past)
            forward.lower_keys = before.at(past) if past < before.length else before
            forward.total = past + forward.length
        left, mask = forward.lower_keys, given.get("attention_mask")
        if left is None or (mask is None and left.valid is None):
            return None
        hidden: Tensor = given.pop("hidden_states")
        given["attention_mask"] = self._mask(forward, index, mask, cache, hidden.shape[-2], hidden.dtype, None, left)
        return (hidden,), given

    # At the layers from K on

    def _compact(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        forward = self._current()
        if forward is None:
            return None
        # At once where there is nothing to do, as at nearly every layer of every step of decoding.
        if index != self.layer and forward.rows is None:
            if forward.upper_keys is None:
                return None
            if forward.upper_keys.valid is None and len(args) < 2 and kwargs.get("attention_mask") is None:
                return None
        given = bind(self.prober.arguments, args, kwargs)
        cache = cache_in(given)
        hidden: Tensor = given["hidden_states"]
        if index == self.layer:
            self._prune(forward, hidden, cache)
        rows, held = forward.rows, forward.upper_keys
        if held is None:
            return None
        mask = given.get("attention_mask")
        if rows is None and mask is None and held.valid is None:
            return None
        num_queries = hidden.shape[-2] if rows is None else rows.index.shape[1]
        given["attention_mask"] = self._mask(forward, index, mask, cache, num_queries, hidden.dtype, rows, held)
        if rows is not None:
            forward.full_hidden = hidden
            given["hidden_states"] = rows.gather(hidden)
            for name in STATES:
                if (value := given.get(name)) is not None:
                    given[name] = tuple(map(rows.gather, value)) if isinstance(value, tuple) else rows.gather(value)
            if (ids := given.get("position_ids")) is not None:
                # Rotary is in position_embeddings already; flash attention would take gaps for packed samples.
                given["position_ids"] = None if self.handle.is_flash(index) else rows.gather_ids(ids)
        return (given.pop("hidden_states"),), given

    def _restore(self, module: nn.Module, args: Any, output: Any) -> Any:
        forward = self._current()
        if forward is None or forward.rows is None or forward.full_hidden is None:
            return None
        full, forward.full_hidden = forward.full_hidden, None
        if isinstance(output, tuple):
            return (forward.rows.scatter(output[0], full), *output[1:])
        return forward.rows.scatter(output, full)

    def _prune(self, forward: Forward, hidden: Tensor, cache: Any) -> None:
        """Chooses the rows of this forward, and brings the list of held keys up to date."""
        before = CompactKeys.of(cache)
        if before is not None and before.layer != self.layer:
            return  # filled under another K: the cache refuses its update, and says why
        forward.cached = cache is not None
        if forward.layout is not None:
            forward.rows = self._choose(forward, hidden)
        if before is None and forward.rows is None:
            return
        if forward.rows is not None and torch.is_grad_enabled():
            refuse_hooks_inside_checkpoints(self.handle.layers[self.layer])
        past = _past_length(cache, forward.length, before)
        if past == 0:
            CompactKeys.take_off(cache)
            before = None
        elif before is not None and past < before.length:
            before = before.at(past)
            before.put_on(cache)
        forward.total = past + forward.length
        forward.upper_keys = before
        if forward.rows is not None:
            held = before or CompactKeys.empty(hidden.shape[-3], self.layer, hidden.device, self.evict_early)
            held = held.at(past)
            forward.upper_keys = held.extend(forward.rows, forward.total)
            forward.masks.clear()  # those of the layers below K, whose rows and keys were others
            if cache is not None:
                forward.upper_keys.put_on(cache)
                if self.evict_early:
                    self._evict(cache, held.index.shape[1], forward.rows, forward.length)
        if forward.upper_keys is not None:
            forward.upper_keys.current = forward.total

    def _evict(self, cache: Any, before: int, rows: Rows, length: int) -> None:
        """Takes the rows that do not go on out of the caches of the layers below K, all of which have been through."""
        new = rows.index + before
        old = torch.arange(before, device=new.device).expand(len(new), -1)
        layers = [self.handle.attention(index).layer_idx for index in range(self.layer)]
        evict(cache, layers, torch.cat((old, new), 1), before + length)

    def _choose(self, forward: Forward, hidden: Tensor) -> Rows | None:
        """Scores the audio tokens and lays out the rows to keep; records what was done."""
        layout, counts, length = forward.layout, forward.counts, forward.length
        assert layout is not None
        assert counts is not None
        refuse_length(self.handle, forward.length, hidden)
        record = PrefillRecord(
            layout.seen, counts, None, layout.audio_index, layout.audio_valid, self.layer, length, length,
            self._costs, hidden.dtype, probed_layers=self.probed, prompts=forward.prompts,
            evict_early=self.evict_early, cached=forward.cached,
        )  # fmt: skip
        if not forward.drops:
            self.report.prefills.append(record)
            return None
        device = hidden.device
        inputs = ScoringInputs(
            layout.audio_valid.to(device, non_blocking=True),
            counts.to(device, non_blocking=True),
            prompts=forward.prompts,
        )
        # Autocast would round scores to half precision, and tie tokens that differ.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            inputs.keys = _on(device, self.prober.keys(forward))
            inputs.embeddings = _on(device, forward.embeddings)
            inputs.attention = _on(device, self.prober.attention(forward))
            forward.keys.clear()
            forward.embeddings = forward.attention = None
            importance = self.scorer.score(inputs)
            if importance.shape != layout.audio_index.shape:
                raise HeadRouterError(
                    f"{type(self.scorer).__name__}.score returned {list(importance.shape)}, expected one score per "
                    f"audio token, {list(layout.audio_index.shape)}."
                )
            # Not a number is no reason to keep a token; and no score stands above one whose output is read.
            ranked = (
                importance.float()
                .nan_to_num(nan=-torch.inf)
                .masked_fill(layout.required.to(device, non_blocking=True), torch.inf)
            )
            kept = select_tokens(ranked, inputs.audio_mask, inputs.counts)
            audio_index = layout.audio_index.to(device, non_blocking=True)
            keep = (layout.valid & ~layout.audio_mask).to(device, non_blocking=True)
            keep = keep.scatter(1, audio_index, kept | keep.gather(1, audio_index))
            totals = layout.valid.sum(1) - layout.seen + counts
            rows = Rows.choose(keep, layout.valid.to(device, non_blocking=True), totals)
        self.report.prefills.append(record)
        record.kept, record.importance, record.rows_kept = kept, importance, int(totals.max())
        record.scout_layers, record.scout_rows = forward.scouted
        record.selectivity, record.head_weights = inputs.selectivity, inputs.head_weights
        record.probabilities, record.families, record.types = inputs.probabilities, inputs.families, inputs.types
        return rows

    def _mask(
        self,
        forward: Forward,
        index: int,
        mask: Any,
        cache: Any,
        num_queries: int,
        dtype: torch.dtype,
        rows: Rows | None,
        held: CompactKeys,
    ) -> Tensor | None:
        sliding = self.handle.is_sliding(index)
        # Layers of one kind are given one mask object, and hold the same keys.
        for given, kind, made in forward.masks:
            if given is mask and kind == sliding:
                return made
        refuse_mask(self.handle, forward.total, index, mask)
        flash = self.handle.is_flash(index)
        key_length, key_offset = num_queries, 0
        if cache is not None:
            key_length, key_offset = _mask_sizes(cache, num_queries, self.handle.attention(index).layer_idx)
        made = compact_mask(
            mask,
            rows=rows,
            keys=held.at(forward.total),
            key_length=key_length,
            key_offset=key_offset,
            num_queries=num_queries,
            flash=flash,
            dtype=dtype,
        )
        forward.masks.append((mask, sliding, made))
        return made


def _unpadded(mask: Any, length: int, past: int) -> Tensor | None:
    """Which of a forward's positions are not padding, ``[B, L]``; None where the mask does not say.

    Args:
        mask: As the model was given it: ``[B, past + L]``, ``[B, h, L, C]`` (bool, or additive), or one of those for
            each kind of layer, of which the one with the most columns is read: a sliding window's are fewer.
        length: Positions L of the forward.
        past: Positions before it.
    """
    if isinstance(mask, Mapping):
        tensors = [part for part in mask.values() if isinstance(part, Tensor)]
        mask = max(tensors, key=lambda part: part.shape[-1], default=None)
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 2:
        return mask[:, -length:] if mask.shape[1] >= length else None
    # Every token sees itself, but padding. Columns of a sliding window end with the last token.
    columns = mask.shape[-1]
    first = past if columns >= past + length else columns - length
    if first < 0:
        return None
    own = mask[:, 0].diagonal(first, dim1=1, dim2=2)
    return own if mask.dtype == torch.bool else own == 0


def _is_matrix(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 2


def _to_cpu(*tensors: Tensor | None) -> list[Tensor | None]:
    """Copies integer tensors ``[B or 1, L]`` to the CPU in one transfer, expanded to one batch size."""
    given = [tensor for tensor in tensors if tensor is not None]
    if not given:
        return list(tensors)
    batch = max(len(tensor) for tensor in given)
    device = given[0].device
    copies = iter(torch.stack([t.to(device, torch.long).expand(batch, -1) for t in given]).cpu())
    return [None if tensor is None else next(copies) for tensor in tensors]


def _mask_sizes(cache: Any, num_queries: int, layer_index: int) -> tuple[int, int]:
    """Keys that a layer's attention will see, and held keys before the first of them."""
    sizes = held_mask_sizes(cache)
    # Older transformers ask for the positions of the new keys, of which they read the number.
    by_position = "cache_position" in inspect.signature(sizes).parameters
    return sizes(torch.arange(num_queries) if by_position else num_queries, layer_index)


def _on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _past_length(cache: Any, length: int, known: CompactKeys | None) -> int:
    """Positions before this forward's, read when the layers below K have been through.

    Args:
        cache: The cache, or None.
        length: Positions of this forward.
        known: What was counted so far, to spare a sync on a static cache, whose length is a tensor.
    """
    if cache is None:
        return 0
    total = cache.get_seq_length()
    if isinstance(total, Tensor) and known is not None:
        return known.current
    return int(total) - length
