"""Drops audio tokens inside a stock model, by hooks.

The sequence stays full-length between layers, so that the final norm, the head, labels, losses and recorders see what
they always see. Around every layer from K on, the kept rows are gathered, worked on, and scattered back; a dropped
position keeps the value it had before layer K. Nothing below K changes.
"""

from __future__ import annotations

import inspect
import sys
import threading
import types
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headrouter_pl.errors import AudioMaskError, HeadRouterError, UnsupportedModelError
from headrouter_pl.functional import apply_rotary, keep_counts, probe_attention, select_tokens
from headrouter_pl.models import LalmHandle
from headrouter_pl.models.caches import cache_in
from headrouter_pl.pruning.caches import FORWARD, CompactKeys, evict, held_mask_sizes
from headrouter_pl.pruning.compaction import Rows, compact_mask
from headrouter_pl.pruning.cost import LayerCost
from headrouter_pl.pruning.layout import TokenLayout, find_audio
from headrouter_pl.pruning.pooling import Pooling
from headrouter_pl.pruning.prompts import PromptReader
from headrouter_pl.pruning.report import PrefillRecord, PruningReport
from headrouter_pl.scorers import Scorer, ScoringInputs

# Arguments of a decoder layer, beside the hidden states, that hold one row per position: [.., L, d].
STATES = ("per_layer_input", "position_embeddings")


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
        probing: Whether the probed layers are read in this forward.
        queries: Gathered queries of each probed layer, ``[B, Q, H, d]``.
        keys: Keys of each probed layer, ``[B, N or L, Hkv, d]``.
        embeddings: The audio tokens as they enter layer 0, ``[B, N, d]``, where asked for.
        attention: What a scout pass measured, float32 ``[B, P, N]``.
        places: In a scout pass, the position in the input of each of its own, ``[B, L]``.
        rotary: ``(cos, sin)`` of each probed layer, where asked for.
        rows: Rows that go through the layers from K on; None where all do.
        held: Keys that these layers hold, this forward's included; None where nothing was ever dropped.
        left: Keys that the layers below K hold, this forward's included; None where nothing was evicted there.
        full: Input of the layer at work, full-length.
        scouted: Layers and rows of the scout pass; 0 where there was none.
        cached: Whether there is a KV cache; known from layer K on.
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
    probing: bool = False
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    rotary: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    embeddings: Tensor | None = None
    attention: Tensor | None = None
    places: Tensor | None = None
    cached: bool = False
    scouted: tuple[int, int] = (0, 0)
    rows: Rows | None = None
    held: CompactKeys | None = None
    left: CompactKeys | None = None
    full: Tensor | None = None
    masks: list[tuple[Any, bool, Tensor | None]] = field(default_factory=list)
    total: int = 0
    outer: Forward | None = None

    @property
    def drops(self) -> bool:
        """Whether any audio token is to be dropped."""
        return self.layout is not None and self.counts is not None and bool((self.counts < self.layout.seen).any())


_REPLACED = "_generate_before_pruning"
"""Attribute of a model whose ``generate`` other code had replaced before."""

_PROMPT_LENGTH: ContextVar[int | None] = ContextVar("headrouter_prompt_length", default=None)


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
        self._layer_arguments = _parameter_names(handle.layers[0], "hidden_states")
        self.probed: tuple[int, ...] = ()
        if scorer.probe is not None:
            self.probed = scorer.probe.resolve(layer, handle.num_layers)
        elif scorer.reads_keys:
            self.probed = (layer - 1,)
        self.pool = None if scorer.probe is None else scorer.probe.pool
        self._check_layers()
        if self.pool is not None:
            self._check_scout()
        scorer.bind(handle, self.probed)
        self._costs = tuple(LayerCost.of(handle, index) for index in range(handle.num_layers))
        self._inputs = {module: _parameter_names(module, "input_ids") for module in handle.inputs}
        self._hooks: list[RemovableHandle] = []
        self._wrapped = False  # whether `generate` is wrapped
        self._warned = False  # of prompts that cannot be read
        self._audio_mask_met = False  # whether a forward had its length, as the first one must

    def _check_layers(self) -> None:
        """Refuses prune and probe layers at which dropping a token is not masking it."""
        handle, layer = self.handle, self.layer
        name = type(handle.model).__name__
        if not 1 <= layer < handle.num_layers:
            raise HeadRouterError(
                f"layer={layer} is out of range: {name} has {handle.num_layers} decoder layers, so K must be in "
                f"1..{handle.num_layers - 1} (layers 0..K-1 see every token)."
            )
        if layer < handle.lowest_layer:
            raise HeadRouterError(
                f"layer={layer} is too low for {name}: its masks are sized by layer {handle.lowest_layer - 1}, the "
                f"first of its kind of attention, which must see every token. Take layer >= {handle.lowest_layer}."
            )
        if layer > handle.highest_layer:
            raise HeadRouterError(
                f"layer={layer} is too high for {name}: later layers reuse the keys of layer {handle.highest_layer}, "
                f"which must not see dropped tokens. Take layer <= {handle.highest_layer}."
            )
        limit = layer if self.pool is None else handle.num_layers
        if bad := [i for i in self.probed if not 0 <= i < limit]:
            if self.pool is None:
                where = f"below the prune layer {layer}: take layer >= {max(bad) + 1}, or other probe layers"
            else:
                where = f"among its {limit} layers"
            raise HeadRouterError(f"Probe layers {bad} of {name} must lie {where}.")
        if len({handle.num_heads(i)[0] for i in self.probed}) > 1 or len(set(self.probed)) < len(self.probed):
            raise HeadRouterError(f"Probe layers {list(self.probed)} must differ, and have the same number of heads.")

    def _check_scout(self) -> None:
        """Refuses scout passes that would not be what the model makes of the averaged audio."""
        handle, name = self.handle, type(self.handle.model).__name__
        if not isinstance(self.pool, int) or self.pool < 1:
            raise HeadRouterError(f"A probe's pool must be a number of tokens, at least 1, got {self.pool}.")
        if any(kind.__name__ == "FSDPModule" for kind in type(handle.layers[0]).__mro__):
            raise UnsupportedModelError(
                f"{name} is sharded by FSDP2, which gathers a layer's weights by hooks that a scout pass does not run. "
                "Take a scorer without a scout pass, such as 'headrouter', or another strategy."
            )
        if self.scorer.reads_keys:
            raise HeadRouterError(
                f"{type(self.scorer).__name__} reads keys of tokens, and probes a scout pass, which has keys of groups "
                "only. Take a probe without pool."
            )
        if "per_layer_input" in self._layer_arguments:
            raise UnsupportedModelError(
                f"{name} cannot make a scout pass: its layers are given inputs of their own, looked up token by token, "
                "and several streams of hidden states, whose mean is not what the model makes of averaged audio. Take "
                "a scorer without a scout pass, such as 'headrouter'."
            )
        if len({handle.is_sliding(i) for i in range(max(self.probed) + 1)}) > 1:
            raise UnsupportedModelError(
                f"{name} cannot make a scout pass: its layers 0..{max(self.probed)} mix full and sliding-window "
                "attention, whose masks are not known before the model gets there. Take a scorer without a scout pass, "
                "such as 'headrouter'."
            )

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
            _UNCOMPILED.enter(self)
            self._wrap_generate()
            for module in handle.inputs:
                self._hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
            for index in self.probed:
                self._hooks.extend(handle.hook_query_key(index, self._read_query, self._read_key))
                if self.scorer.probe is not None and self.scorer.probe.rotary and self.pool is None:
                    read = partial(self._read_rotary, index)
                    self._hooks.append(handle.layers[index].register_forward_pre_hook(read, with_kwargs=True))
            if self.scorer.reads_embeddings or self.pool is not None:
                self._hooks.append(handle.layers[0].register_forward_pre_hook(self._read_input, with_kwargs=True))
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
        _UNCOMPILED.leave(self)
        forward = FORWARD.get()
        if forward is not None and forward.engine is self:  # left over by a KeyboardInterrupt
            FORWARD.set(forward.outer)
        if self._wrapped:
            attributes = self.handle.model.__dict__
            del attributes["generate"]
            if _REPLACED in attributes:
                attributes["generate"] = attributes.pop(_REPLACED)
            self._wrapped = False

    def _wrap_generate(self) -> None:
        """Lets ``generate`` say how long the prompt is, which no forward can tell from drafts and earlier answers."""
        model = self.handle.model
        if hasattr(type(model), "generate"):
            if (found := model.__dict__.get("generate")) is not None:
                if getattr(found, "__func__", None) is _generate:
                    name = type(model).__name__
                    raise HeadRouterError(f"A pruner is attached to this {name} already. Leave it first.")
                model.__dict__[_REPLACED] = found  # such as FSDP2's, which gathers the weights
            # A bound method: deepcopy of the model binds it to the copy.
            model.__dict__["generate"] = types.MethodType(_generate, model)
            self._wrapped = True

    # Around the model

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        outer = FORWARD.get()
        if outer is not None and outer.engine is self:
            if outer.module is not module:
                return  # an inner module of a forward under way
            outer = outer.outer  # that forward never ended: a KeyboardInterrupt
        given = {**dict(zip(self._inputs[module], args, strict=False)), **kwargs}
        input_ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        shown = input_ids if input_ids is not None else embeds
        if shown is None:
            return  # the model's own error is the better one
        forward = Forward(self, module, shown.shape[1], outer=outer)
        if forward.length > 1:
            self._lay_out(forward, input_ids, shown.shape[0], given)
        FORWARD.set(forward)

    def _lay_out(self, forward: Forward, input_ids: Tensor | None, batch: int, given: Mapping[str, Any]) -> None:
        """Reads the batch on the CPU, before any of its GPU work is queued: the one host-device sync of a prefill."""
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
        prompt_length = _PROMPT_LENGTH.get()
        prompt_length = None if prompt_length is None else prompt_length - past
        layout = TokenLayout.build(audio_mask, attention_mask=mask, labels=labels, prompt_length=prompt_length)
        if not bool(layout.seen.any()):
            return
        self._refuse_unfit(given, positions, mask)
        counts = keep_counts(layout.seen, keep_ratio=self.keep_ratio, keep_tokens=self.keep_tokens)
        forward.layout, forward.past = layout, past
        forward.counts = torch.maximum(counts, layout.required.sum(1))
        forward.probing = self.pool is None and self._measures(forward)
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

    def _refuse_unfit(self, given: Mapping[str, Any], positions: Tensor | None, mask: Tensor | None) -> None:
        """Refuses forwards with audio in which dropping tokens would go wrong.

        Args:
            given: Arguments of the forward.
            positions: Position ids ``[B, L]`` of a forward that is given no mask ``[B, L]``, or None.
            mask: Which positions are not padding, ``[B, L]``, or None.
        """
        router_logits = given.get("output_router_logits")
        if router_logits is None:
            config: Any = self.handle.model.config
            config = config.get_text_config()
            router_logits = getattr(config, "output_router_logits", False)
        if router_logits:
            raise HeadRouterError(
                "The load-balancing loss of mixture layers expects as many tokens in every layer. Prune without "
                "output_router_logits, as an argument and in the config."
            )
        if given.get("cu_seq_lens_q") is not None or (positions is not None and _starts_anew(positions, mask)):
            raise HeadRouterError(
                "The batch holds packed samples (position_ids start anew within a row), so that it cannot be told "
                "whose question asks of whose audio. Turn packing off, and pad."
            )

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        forward = FORWARD.get()
        if forward is not None and forward.engine is self and forward.module is module:
            FORWARD.set(forward.outer)

    def _measures(self, forward: Forward) -> bool:
        """Whether the scorer's inputs are wanted of a prefill with audio."""
        return forward.drops

    # At the probe layers

    def _current(self) -> Forward | None:
        forward = FORWARD.get()
        return forward if forward is not None and forward.engine is self else None

    def _read_query(self, layer: int, states: Tensor) -> None:
        forward = self._probing(states)
        if forward is not None and forward.layout is not None and self.scorer.probe is not None:
            forward.queries[layer] = _take(states.detach(), self._query_index(forward.layout)[0])

    def _read_key(self, layer: int, states: Tensor) -> None:
        forward = self._probing(states)
        if forward is not None and forward.layout is not None:
            states = states.detach()
            forward.keys[layer] = states if self._reads_all_keys else _take(states, forward.layout.audio_index)

    def _probing(self, states: Tensor) -> Forward | None:
        """The forward to read these projections ``[B, L, ...]`` for, or None."""
        forward = self._current()
        return forward if forward is not None and forward.probing and states.shape[1] == forward.length else None

    @property
    def _reads_all_keys(self) -> bool:
        return self.scorer.probe is not None and self.scorer.probe.keys == "all"

    def _query_index(self, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Positions ``[B, Q]`` of the scorer's queries, and which are true ones."""
        assert self.scorer.probe is not None
        if self.scorer.probe.queries == "prompt":
            return layout.query_index, layout.query_valid
        last = layout.query_index.gather(1, (layout.query_valid.sum(1, keepdim=True) - 1).clamp(min=0))
        return last, torch.ones_like(last, dtype=torch.bool)

    def _read_rotary(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self._current()
        if forward is not None and forward.layout is not None:
            forward.rotary[index] = self._bind(args, kwargs)["position_embeddings"]

    def _keys(self, forward: Forward) -> Tensor | None:
        """Keys of the audio tokens, float32 ``[B, N, C]``."""
        layout = forward.layout
        if not self.scorer.reads_keys or layout is None:
            return None
        self._refuse_replaced(forward.keys)
        keys = [forward.keys[layer] for layer in self.probed]
        keys = [_take(part, layout.audio_index) if self._reads_all_keys else part for part in keys]
        flat = torch.cat([part.flatten(2).float().to(keys[0].device) for part in keys], 2)
        return flat.masked_fill(~layout.audio_valid.to(flat.device)[..., None], 0.0)

    def _refuse_replaced(self, read: Mapping[int, Tensor]) -> None:
        if not set(self.probed) <= read.keys():
            raise HeadRouterError(
                "The probe layers' projections were replaced since the pruner was attached (by merging or adding "
                "adapters). Leave the pruner first, and attach it to the changed model."
            )

    def _attention(self, forward: Forward) -> Tensor | None:
        """Probe attention over the audio tokens, float32 ``[B, P, N]``."""
        probe, layout = self.scorer.probe, forward.layout
        if probe is None or layout is None:
            return None
        query_index, query_mask = self._query_index(layout)
        heads = []
        self._refuse_replaced(forward.queries)
        self._refuse_replaced(forward.keys)
        for layer in self.probed:
            query, key = forward.queries.pop(layer), forward.keys.pop(layer)
            device = query.device
            key_index = layout.audio_index
            if probe.keys == "all":
                key_index = torch.arange(forward.length, device=key_index.device).expand(layout.shape)
            if probe.rotary:
                cos, sin = (part.expand(len(query), -1, -1) for part in forward.rotary.pop(layer))
                query = apply_rotary(query, _take(cos, query_index), _take(sin, query_index))
                key = apply_rotary(key, _take(cos, key_index), _take(sin, key_index))
            key_mask = layout.audio_valid
            if probe.keys == "all":
                place = key_index if forward.places is None else forward.places
                distance = place.gather(1, query_index)[..., None] - place[:, None]
                window = self.handle.window(layer) or forward.length
                key_mask = layout.valid[:, None] & (distance >= 0) & (distance < window)
            attention = probe_attention(
                query,
                key,
                query_mask=query_mask.to(device),
                key_mask=key_mask.to(device),
                scaling=getattr(self.handle.attention(layer), "scaling", None),
            )
            if probe.keys == "all":
                audio = layout.audio_index.to(device)[:, None].expand(-1, attention.shape[1], -1)
                attention = attention.gather(2, audio).masked_fill(~layout.audio_valid.to(device)[:, None], 0.0)
            heads.append(attention)
        return torch.cat([head.to(heads[0].device) for head in heads], 1)

    # At layer 0

    def _read_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self._current()
        if forward is None or forward.layout is None or not self._measures(forward):
            return
        given = self._bind(args, kwargs)
        self._check_length(forward, given["hidden_states"])
        if self.scorer.reads_embeddings:
            hidden = given["hidden_states"].detach()
            # Of several streams (Gemma 3n) the first is the embedding.
            embeddings = _take(hidden if hidden.dim() == 3 else hidden[0], forward.layout.audio_index).float()
            audio_valid = forward.layout.audio_valid.to(embeddings.device)
            forward.embeddings = embeddings.masked_fill(~audio_valid[..., None], 0.0)
        if self.pool is not None:
            self._scout(forward, given, self.pool)

    def _scout(self, forward: Forward, given: dict[str, Any], pool: int) -> None:
        """Runs the layers on pooled audio, and measures attention there."""
        assert forward.layout is not None
        pooling = Pooling.build(forward.layout, pool)
        hidden = pooling.average(given["hidden_states"].detach(), pool)
        flash = self._is_flash(0)
        self._refuse_mask(forward.length, 0, given.get("attention_mask"))
        rows = Rows(pooling.middle, None)
        # No cache, so that nothing stays of this pass; other arguments as the model gives them.
        given = {**given, "attention_mask": pooling.mask(given.get("attention_mask"), forward.past)}
        given |= {name: None for name in ("cache", "past_key_values") if name in given}
        given |= {"use_cache": False} if "use_cache" in given else {}
        if given.get("position_embeddings") is not None:
            given["position_embeddings"] = tuple(map(rows.gather, given["position_embeddings"]))
        if (ids := given.get("position_ids")) is not None:
            given["position_ids"] = None if flash else rows.gather_ids(ids)
        del given["hidden_states"]
        scout = Forward(self, forward.module, hidden.shape[1], pooling.layout, probing=True, places=pooling.middle)
        device = hidden.device.type
        # Without its cache: older versions of torch (2.13 does not) remember weights that were cast without gradients,
        # and the model's own pass would take them.
        autocast: AbstractContextManager[object] = nullcontext()
        if torch.is_autocast_enabled(device):
            autocast = torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)
        with torch.no_grad(), autocast, self._same_random_numbers():
            # In an empty context, recorders (of hidden states, attentions, router logits) are not at work.
            Context().run(self._run_scout, scout, hidden, given)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            attention = self._attention(scout)
            assert attention is not None
            forward.attention = pooling.spread(attention)
        forward.scouted = max(self.probed) + 1, scout.length

    def _run_scout(self, scout: Forward, hidden: Tensor, given: dict[str, Any]) -> None:
        FORWARD.set(scout)
        for index in range(max(self.probed) + 1):
            if index in self.probed and given.get("position_embeddings") is not None:
                scout.rotary[index] = given["position_embeddings"]
            # Not by calling the layer: hooks that sit on it are for the model's own pass.
            output = self.handle.layers[index].forward(hidden, **given)
            hidden = output[0] if isinstance(output, tuple) else output

    def _same_random_numbers(self) -> AbstractContextManager[object]:
        """Gives dropout of the model's own pass the numbers that it would draw without a scout pass before it."""
        layers = self.handle.layers[: max(self.probed) + 1]
        if not any(layer.training for layer in layers):
            return nullcontext()
        devices = {next(layer.parameters()).device for layer in layers} - {torch.device("cpu")}
        kind = next(iter(devices)).type if devices else "cuda"
        return torch.random.fork_rng(devices=[device.index for device in devices], device_type=kind)

    # At the layers below K, once keys were evicted from them

    def _narrow(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cuts the mask of a layer to the keys that it was left with."""
        forward = self._current()
        if forward is None or (index > 0 and forward.left is None):
            return None
        given = self._bind(args, kwargs)
        cache = cache_in(given)
        if index == 0:
            before = CompactKeys.of(cache)
            if before is None or not before.evicted or before.layer != self.layer:
                return None
            past = cache.get_seq_length()
            # A static cache has its length on the device.
            past = before.current if isinstance(past, Tensor) else int(past)
            forward.left = before.at(past) if past < before.length else before
            forward.total = past + forward.length
        left, mask = forward.left, given.get("attention_mask")
        if left is None or (mask is None and left.valid is None):
            return None
        hidden: Tensor = given.pop("hidden_states")
        given["attention_mask"] = self._mask(forward, index, mask, cache, hidden.shape[-2], hidden.dtype, None, left)
        return (hidden,), given

    # At the layers from K on

    def _check_length(self, forward: Forward, hidden: Tensor) -> None:
        if hidden.shape[-2] != forward.length:
            raise AudioMaskError(
                f"The decoder of {type(self.handle.model).__name__} works on {hidden.shape[-2]} positions, input_ids "
                f"has {forward.length}: the model expands its audio placeholders itself. Expand them beforehand, as "
                "its processor does."
            )

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**dict(zip(self._layer_arguments, args, strict=False)), **kwargs}

    def _compact(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        forward = self._current()
        if forward is None:
            return None
        # At once where there is nothing to do, as at nearly every layer of every step of decoding.
        if index != self.layer and forward.rows is None:
            if forward.held is None:
                return None
            if forward.held.valid is None and len(args) < 2 and kwargs.get("attention_mask") is None:
                return None
        given = self._bind(args, kwargs)
        cache = cache_in(given)
        hidden: Tensor = given["hidden_states"]
        if index == self.layer:
            self._prune(forward, hidden, cache)
        rows, held = forward.rows, forward.held
        if held is None:
            return None
        mask = given.get("attention_mask")
        if rows is None and mask is None and held.valid is None:
            return None
        num_queries = hidden.shape[-2] if rows is None else rows.index.shape[1]
        given["attention_mask"] = self._mask(forward, index, mask, cache, num_queries, hidden.dtype, rows, held)
        if rows is not None:
            forward.full = hidden
            given["hidden_states"] = rows.gather(hidden)
            for name in STATES:
                if (value := given.get(name)) is not None:
                    given[name] = tuple(map(rows.gather, value)) if isinstance(value, tuple) else rows.gather(value)
            if (ids := given.get("position_ids")) is not None:
                # Rotary is in position_embeddings already; flash attention would take gaps for packed samples.
                given["position_ids"] = None if self._is_flash(index) else rows.gather_ids(ids)
        return (given.pop("hidden_states"),), given

    def _restore(self, module: nn.Module, args: Any, output: Any) -> Any:
        forward = self._current()
        if forward is None or forward.rows is None or forward.full is None:
            return None
        full, forward.full = forward.full, None
        if isinstance(output, tuple):
            return (forward.rows.scatter(output[0], full), *output[1:])
        return forward.rows.scatter(output, full)

    def _prune(self, forward: Forward, hidden: Tensor, cache: Any) -> None:
        """Chooses the rows of this forward, and brings the list of held keys up to date."""
        before = CompactKeys.of(cache)
        if before is not None and before.layer != self.layer:
            return  # the cache refuses its update
        forward.cached = cache is not None
        if forward.layout is not None:
            forward.rows = self._choose(forward, hidden)
        if before is None and forward.rows is None:
            return
        if forward.rows is not None and torch.is_grad_enabled():
            _refuse_hooks_inside_checkpoints(self.handle.layers[self.layer])
        past = _past_length(cache, forward.length, before)
        if past == 0:
            CompactKeys.take_off(cache)
            before = None
        elif before is not None and past < before.length:
            before = before.at(past)
            before.put_on(cache)
        forward.total = past + forward.length
        forward.held = before
        if forward.rows is not None:
            held = before or CompactKeys.empty(hidden.shape[-3], self.layer, hidden.device, self.evict_early)
            held = held.at(past)
            forward.held = held.extend(forward.rows, forward.total)
            forward.masks.clear()  # those of the layers below K, whose rows and keys were others
            if cache is not None:
                forward.held.put_on(cache)
                if self.evict_early:
                    self._evict(cache, held.index.shape[1], forward.rows, forward.length)
        if forward.held is not None:
            forward.held.current = forward.total

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
        self._check_length(forward, hidden)
        record = PrefillRecord(
            layout.seen, counts, None, layout.audio_index, layout.audio_valid, self.layer, length, length,
            self._costs, hidden.dtype, probed_layers=self.probed, prompts=forward.prompts,
            evict_early=self.evict_early, cached=forward.cached,
        )  # fmt: skip
        if not forward.drops:
            self.report.prefills.append(record)
            return None
        device = hidden.device
        inputs = ScoringInputs(layout.audio_valid.to(device), counts.to(device), prompts=forward.prompts)
        # Autocast would round scores to half precision, and tie tokens that differ.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            inputs.keys = _on(device, self._keys(forward))
            inputs.embeddings = _on(device, forward.embeddings)
            inputs.attention = _on(device, self._attention(forward) if self.pool is None else forward.attention)
            forward.keys.clear()
            forward.embeddings = forward.attention = None
            importance = self.scorer.score(inputs)
            if importance.shape != layout.audio_index.shape:
                raise HeadRouterError(
                    f"{type(self.scorer).__name__}.score returned {list(importance.shape)}, expected one score per "
                    f"audio token, {list(layout.audio_index.shape)}."
                )
            # Not a number is no reason to keep a token; and no score stands above one whose output is read.
            ranked = importance.float().nan_to_num(nan=-torch.inf).masked_fill(layout.required.to(device), torch.inf)
            kept = select_tokens(ranked, inputs.audio_mask, inputs.counts)
            audio_index = layout.audio_index.to(device)
            keep = (layout.valid & ~layout.audio_mask).to(device)
            keep = keep.scatter(1, audio_index, kept | keep.gather(1, audio_index))
            totals = layout.valid.sum(1) - layout.seen + counts
            rows = Rows.choose(keep, layout.valid.to(device), totals)
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
        self._refuse_mask(forward.total, index, mask)
        flash = self._is_flash(index)
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

    def _refuse_mask(self, total: int, index: int, mask: Any) -> None:
        """Refuses attention whose masks cannot be cut to fewer tokens, in a sequence of ``total`` positions."""
        if mask is not None and not isinstance(mask, Tensor):
            raise UnsupportedModelError(
                f"The layers are given a {type(mask).__name__} as attention mask. Load the model with "
                "attn_implementation='sdpa', 'eager' or 'flash_attention_2'."
            )
        if self._is_flash(index) and total > (self.handle.window(index) or total):
            raise UnsupportedModelError(
                "Flash attention counts its sliding window in kept tokens, which is not the same as masking the "
                "dropped ones. Load the model with attn_implementation='sdpa'."
            )

    def _is_flash(self, index: int) -> bool:
        return "flash" in str(getattr(self.handle.attention(index).config, "_attn_implementation", ""))


class _Uncompiled:
    """Lets compiled code run uncompiled while any engine is attached: it does not look for hooks that came after it."""

    def __init__(self) -> None:
        self.engines: set[int] = set()
        self.lock = threading.Lock()
        self.stance: Any = None

    def enter(self, engine: PruningEngine) -> None:
        """Counts an engine in."""
        with self.lock:
            if not self.engines and "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
                self.stance = torch.compiler.set_stance("force_eager")
            self.engines.add(id(engine))

    def leave(self, engine: PruningEngine) -> None:
        """Counts an engine out; may be called for one that is not in."""
        with self.lock:
            self.engines.discard(id(engine))
            if not self.engines and self.stance is not None:
                self.stance.__exit__(None, None, None)
                self.stance = None


_UNCOMPILED = _Uncompiled()


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for ``model.generate`` while a pruner is attached, to remember the prompt's length."""
    inputs = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    if inputs is None:
        inputs = kwargs.get("inputs_embeds")
    length = inputs.shape[1] if isinstance(inputs, Tensor) else None
    if length is not None and _is_matrix(mask := kwargs.get("attention_mask")):
        length = max(length, mask.shape[1])  # a later turn may come as new tokens alone, under a mask of all
    token = _PROMPT_LENGTH.set(length)
    try:
        replaced = model.__dict__.get(_REPLACED)
        return type(model).generate(model, *args, **kwargs) if replaced is None else replaced(*args, **kwargs)
    finally:
        _PROMPT_LENGTH.reset(token)


def _unpadded(mask: Any, length: int, past: int) -> Tensor | None:
    """Which of a forward's positions are not padding, ``[B, L]``; None where the mask does not say.

    Args:
        mask: As the model was given it: ``[B, past + L]``, ``[B, h, L, C]`` (bool, or additive), or one of those for
            each kind of layer.
        length: Positions L of the forward.
        past: Positions before it.
    """
    if isinstance(mask, Mapping):
        mask = next(iter(mask.values()), None)
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 2:
        return mask[:, -length:] if mask.shape[1] >= length else None
    # Every token sees itself, but padding.
    own = mask[:, 0].diagonal(past, dim1=1, dim2=2)
    return own if mask.dtype == torch.bool else own == 0


def _starts_anew(positions: Tensor, mask: Tensor | None) -> bool:
    """Whether position ids ``[B, L]`` ever fail to rise from one position that is not padding to the next."""
    for row, ids in enumerate(positions):
        shown = ids if mask is None else ids[mask[row if len(mask) > 1 else 0].bool()]
        if bool((shown.diff() <= 0).any()):
            return True
    return False


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


def _refuse_hooks_inside_checkpoints(layer: Any) -> None:
    """Refuses gradient checkpointing where the backward pass would run the layer without its hooks' state."""
    if not (layer.training and getattr(layer, "gradient_checkpointing", False)):
        return
    if any(kind.__name__ == "GradientCheckpointingLayer" and "__call__" in vars(kind) for kind in type(layer).__mro__):
        raise HeadRouterError(
            "This version of transformers runs module hooks inside gradient checkpoints, so pruned training steps "
            "cannot be recomputed. Upgrade transformers (5.23 works), or train unpruned or without checkpointing."
        )


def _mask_sizes(cache: Any, num_queries: int, layer_index: int) -> tuple[int, int]:
    """Keys that a layer's attention will see, and held keys before the first of them."""
    sizes = held_mask_sizes(cache)
    # Older transformers ask for the positions of the new keys, of which they read the number.
    by_position = "cache_position" in inspect.signature(sizes).parameters
    return sizes(torch.arange(num_queries) if by_position else num_queries, layer_index)


# Pickled by its name on the model, which then finds the model's own.
_generate.__name__ = "generate"


def _parameter_names(module: nn.Module, wanted: str) -> list[str]:
    """Names of the positional arguments of a module's forward, ``wanted`` among them.

    Looks through wrappers that take anything (compiled modules, checkpoint wrappers), and at classes: an instance's
    forward may have been replaced.
    """
    for part in module.modules():
        names = list(inspect.signature(type(part).forward).parameters)[1:]
        if wanted in names:
            return names
    return [wanted]


def _on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _take(states: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` ``[B, M]`` of ``states`` ``[B, L, ...]``."""
    index = index.to(states.device).reshape(*index.shape, *[1] * (states.dim() - 2))
    return states.gather(1, index.expand(-1, -1, *states.shape[2:]))


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
