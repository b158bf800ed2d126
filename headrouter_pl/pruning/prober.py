"""Reads what a scorer scores by, in the model's own pass or in a scout pass before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.functional import apply_rotary, probe_attention
from headrouter_pl.models import LalmHandle
from headrouter_pl.pruning.arguments import bind, parameter_names
from headrouter_pl.pruning.caches import FORWARD
from headrouter_pl.pruning.compaction import Rows
from headrouter_pl.pruning.forward import Forward
from headrouter_pl.pruning.layout import TokenLayout
from headrouter_pl.pruning.pooling import Pooling
from headrouter_pl.pruning.refusals import refuse_length, refuse_mask
from headrouter_pl.scorers import Scorer


class Prober:
    """The hooks that read queries, keys and embeddings, and the scout pass.

    What they read lies in the forward at work until :meth:`keys` and :meth:`attention` make it what scorers see.

    Args:
        handle: The model.
        scorer: Whose inputs are read.
        layer: The prune layer K.

    Attributes:
        probed: The layers that are read.
        pool: Audio tokens a group of a scout pass; None where there is none.
    """

    WORK = ("_read_query", "_read_key", "_read_rotary", "attention", "keys", "_scout")
    """Methods that its time is spent in, for :mod:`headrouter_pl.benchmarking`."""

    def __init__(self, handle: LalmHandle, scorer: Scorer, layer: int) -> None:
        self.handle = handle
        self.scorer = scorer
        self.probed: tuple[int, ...] = ()
        if scorer.probe is not None:
            self.probed = scorer.probe.resolve(layer, handle.num_layers)
        elif scorer.reads_keys:
            self.probed = (layer - 1,)
        self.pool = None if scorer.probe is None else scorer.probe.pool
        self.arguments = parameter_names(handle.layers[0], "hidden_states")

    def attach(self) -> Iterator[RemovableHandle]:
        """Registers the hooks, one by one."""
        layers = self.handle.layers
        for index in self.probed:
            yield from self.handle.hook_query_key(index, self._read_query, self._read_key)
            if self.scorer.probe is not None and self.scorer.probe.rotary and self.pool is None:
                yield layers[index].register_forward_pre_hook(partial(self._read_rotary, index), with_kwargs=True)
        if self.scorer.reads_embeddings or self.pool is not None:
            yield layers[0].register_forward_pre_hook(self._read_input, with_kwargs=True)

    def _current(self) -> Forward | None:
        forward = FORWARD.get()
        return forward if forward is not None and forward.engine.prober is self else None

    def _read_query(self, layer: int, states: Tensor) -> None:
        forward = self._probing(states)
        if forward is not None and forward.layout is not None and self.scorer.probe is not None:
            forward.queries[layer] = take(states.detach(), self._query_index(forward.layout)[0])

    def _read_key(self, layer: int, states: Tensor) -> None:
        forward = self._probing(states)
        if forward is not None and forward.layout is not None:
            states = states.detach()
            forward.keys[layer] = states if self._reads_all_keys else take(states, forward.layout.audio_index)

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
        if self.scorer.probe.queries != "last":
            return layout.query_index, layout.query_valid
        last = layout.query_index.gather(1, (layout.query_valid.sum(1, keepdim=True) - 1).clamp(min=0))
        return last, torch.ones_like(last, dtype=torch.bool)

    def _read_rotary(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self._current()
        if forward is not None and forward.layout is not None:
            forward.rotary[index] = bind(self.arguments, args, kwargs)["position_embeddings"]

    def keys(self, forward: Forward) -> Tensor | None:
        """Keys of the audio tokens, float32 ``[B, N, C]``."""
        layout = forward.layout
        if not self.scorer.reads_keys or layout is None:
            return None
        self._refuse_replaced(forward.keys)
        keys = [forward.keys[layer] for layer in self.probed]
        keys = [take(part, layout.audio_index) if self._reads_all_keys else part for part in keys]
        flat = torch.cat([part.flatten(2).float().to(keys[0].device) for part in keys], 2)
        return flat.masked_fill(~layout.audio_valid.to(flat.device, non_blocking=True)[..., None], 0.0)

    def _refuse_replaced(self, read: Mapping[int, Tensor]) -> None:
        if not set(self.probed) <= read.keys():
            raise HeadRouterError(
                "The probe layers' projections were replaced since the pruner was attached (by merging or adding "
                "adapters). Leave the pruner first, and attach it to the changed model."
            )

    def attention(self, forward: Forward) -> Tensor | None:
        """Probe attention over the audio tokens, float32 ``[B, P, N]``; None where the scorer asked for none."""
        return self._weigh(forward) if self.pool is None else forward.attention

    def _weigh(self, forward: Forward) -> Tensor | None:
        """Makes attention of the queries and keys that were read in this forward."""
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
                query = apply_rotary(query, take(cos, query_index), take(sin, query_index))
                key = apply_rotary(key, take(cos, key_index), take(sin, key_index))
            key_mask = layout.audio_valid
            if probe.keys == "all":
                place = key_index if forward.positions is None else forward.positions
                distance = place.gather(1, query_index)[..., None] - place[:, None]
                window = self.handle.window(layer) or forward.length
                key_mask = layout.valid[:, None] & (distance >= 0) & (distance < window)
            attention = probe_attention(
                query,
                key,
                query_mask=query_mask.to(device, non_blocking=True),
                key_mask=key_mask.to(device, non_blocking=True),
                scaling=getattr(self.handle.attention(layer), "scaling", None),
                reduce="max" if probe.queries == "max" else "mean",
            )
            if probe.keys == "all":
                audio = layout.audio_index.to(device, non_blocking=True)[:, None].expand(-1, attention.shape[1], -1)
                attention = attention.gather(2, audio).masked_fill(
                    ~layout.audio_valid.to(device, non_blocking=True)[:, None], 0.0
                )
            heads.append(attention)
        return torch.cat([head.to(heads[0].device) for head in heads], 1)

    # The scout pass

    def _read_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self._current()
        if forward is None or forward.layout is None or not forward.measured:
            return
        given = bind(self.arguments, args, kwargs)
        refuse_length(self.handle, forward.length, given["hidden_states"])
        if self.scorer.reads_embeddings:
            hidden = given["hidden_states"].detach()
            # Of several streams (Gemma 3n) the first is the embedding.
            embeddings = take(hidden if hidden.dim() == 3 else hidden[0], forward.layout.audio_index).float()
            audio_valid = forward.layout.audio_valid.to(embeddings.device, non_blocking=True)
            forward.embeddings = embeddings.masked_fill(~audio_valid[..., None], 0.0)
        if self.pool is not None:
            self._scout(forward, given, self.pool)

    def _scout(self, forward: Forward, given: dict[str, Any], pool: int) -> None:
        """Runs the layers on pooled audio, and measures attention there."""
        assert forward.layout is not None
        pooling = Pooling.build(forward.layout, pool)
        hidden = pooling.average(given["hidden_states"].detach(), pool)
        flash = self.handle.is_flash(0)
        refuse_mask(self.handle, forward.length, 0, given.get("attention_mask"))
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
        scout = Forward(
            forward.engine, forward.module, hidden.shape[1], pooling.layout, probing=True, positions=pooling.middle
        )
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
            attention = self._weigh(scout)
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


def take(states: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` ``[B, M]`` of ``states`` ``[B, L, ...]``."""
    index = index.to(states.device, non_blocking=True).reshape(*index.shape, *[1] * (states.dim() - 2))
    return states.gather(1, index.expand(-1, -1, *states.shape[2:]))
