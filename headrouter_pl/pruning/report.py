"""What a pruner really did: tokens seen and kept, routes, KV bytes, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from headrouter_pl.profiles import HeadProfile
from headrouter_pl.pruning.cost import LayerCost


@dataclass(frozen=True, eq=False)
class SampleReport:
    """One sample of one pruned prefill.

    Attributes:
        seen: Audio tokens there were.
        kept: Long tensor ``[kept]`` on the CPU: positions in the input of the audio tokens kept, in time order.
        route: Probability of each family, ``{"semantic": .., "acoustic": ..}``; empty where the scorer does not route.
        types: Probability of each type of the profile; empty likewise.
        importance: Float tensor ``[seen]`` on the CPU, the score of each audio token; None where all were kept.
        selectivity: Float tensor ``[P]`` on the CPU, or None.
        head_weights: Float tensor ``[P]`` on the CPU, or None.
        tokens_per_layer: Audio tokens that each decoder layer worked on.
        layer: The prune layer K.
        probed_layers: Layers whose heads ``selectivity`` and ``head_weights`` are of, layer by layer.
        prompt: The question as the router read it; None where it was not read.
        kept_mask: Bool tensor ``[seen]`` on the CPU: which audio tokens were kept, counted over all clips.
    """

    seen: int
    kept: Tensor
    route: Mapping[str, float]
    types: Mapping[str, float]
    importance: Tensor | None
    selectivity: Tensor | None
    head_weights: Tensor | None
    tokens_per_layer: tuple[int, ...]
    layer: int = 0
    probed_layers: tuple[int, ...] = ()
    prompt: str | None = None
    kept_mask: Tensor | None = None

    @property
    def keep_ratio(self) -> float:
        """The ratio that was applied, ``kept / seen``; 1 for a sample without audio."""
        return len(self.kept) / self.seen if self.seen else 1.0


@dataclass(eq=False)
class PrefillRecord:
    """One pruned prefill of a batch, as the engine leaves it; tensors may still be on the device.

    Attributes:
        seen: Long tensor ``[B]`` on the CPU.
        counts: Long tensor ``[B]`` on the CPU, tokens kept.
        kept: Bool tensor ``[B, N]``, or None where all were kept.
        audio_index: Long tensor ``[B, N]`` on the CPU.
        audio_valid: Bool tensor ``[B, N]`` on the CPU.
        layer: The prune layer K.
        rows_full: Rows of the batch's tensors, padding included, in the layers below K.
        rows_kept: Rows in the layers from K on.
        costs: Cost of each layer.
        dtype: Of the KV cache.
        scout_layers: Layers that a scout pass went through before; 0 where there was none.
        scout_rows: Rows of its pooled sequence, padding included.
        importance: Float tensor ``[B, N]`` or None.
        selectivity: Float tensor ``[B, P]`` or None.
        head_weights: Float tensor ``[B, P]`` or None.
        probabilities: Float tensor ``[B, T]`` or None.
        families: Probability ``[B]`` of each family.
        types: Names of the T types.
        probed_layers: The probed layers.
        prompts: Text of each prompt, or None.
        evict_early: Whether the caches of the layers below K hold the kept tokens only, too.
        cached: Whether there is a KV cache.
    """

    seen: Tensor
    counts: Tensor
    kept: Tensor | None
    audio_index: Tensor
    audio_valid: Tensor
    layer: int
    rows_full: int
    rows_kept: int
    costs: tuple[LayerCost, ...]
    dtype: torch.dtype
    scout_layers: int = 0
    scout_rows: int = 0
    importance: Tensor | None = None
    selectivity: Tensor | None = None
    head_weights: Tensor | None = None
    probabilities: Tensor | None = None
    families: Mapping[str, Tensor] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    probed_layers: tuple[int, ...] = ()
    prompts: Sequence[str] | None = None
    evict_early: bool = False
    cached: bool = True

    @cached_property
    def samples(self) -> list[SampleReport]:
        """One report per sample of the batch."""
        kept = self.audio_valid if self.kept is None else self.kept.cpu()
        importance, selectivity, head_weights, probabilities = (
            None if tensor is None else tensor.detach().float().cpu()
            for tensor in (self.importance, self.selectivity, self.head_weights, self.probabilities)
        )
        families = {name: values.detach().float().cpu() for name, values in self.families.items()}
        reports = []
        for row, (seen, count) in enumerate(zip(self.seen.tolist(), self.counts.tolist(), strict=True)):
            reports.append(
                SampleReport(
                    seen=seen,
                    kept=self.audio_index[row][kept[row]],
                    route={name: float(values[row]) for name, values in families.items()},
                    types={}
                    if probabilities is None
                    else dict(zip(self.types, probabilities[row].tolist(), strict=True)),
                    importance=None if importance is None else importance[row, :seen],
                    selectivity=None if selectivity is None else selectivity[row],
                    head_weights=None if head_weights is None else head_weights[row],
                    tokens_per_layer=tuple(seen if i < self.layer else count for i in range(len(self.costs))),
                    layer=self.layer,
                    probed_layers=self.probed_layers,
                    prompt=None if self.prompts is None else self.prompts[row],
                    kept_mask=kept[row, :seen],
                )
            )
        return reports

    def cost(self) -> dict[str, int]:
        """FLOPs (a scout pass included) and KV bytes of the decoder's layers, with and without pruning.

        Without a cache the bytes are 0.
        """
        batch = len(self.seen)
        full = held = full_flops = flops = 0
        for index, cost in enumerate(self.costs):
            rows = self.rows_full if index < self.layer else self.rows_kept
            cached = self.rows_kept if self.evict_early else rows
            if self.cached:
                full += batch * cost.kv_bytes(self.rows_full, self.dtype)
                held += batch * cost.kv_bytes(cached, self.dtype)
            full_flops += batch * cost.flops(self.rows_full)
            flops += batch * cost.flops(rows)
            if index < self.scout_layers:
                flops += batch * cost.flops(self.scout_rows)
        return {"kv_bytes_held": held, "kv_bytes_saved": full - held, "flops": flops, "flops_unpruned": full_flops}


class PruningReport:
    """What happened under a pruner, prefill by prefill.

    Args:
        profile: The head profile at work, of a scorer that has one.
    """

    def __init__(self, profile: HeadProfile | None = None) -> None:
        self.profile = profile
        self.prefills: list[PrefillRecord] = []

    def clear(self) -> None:
        """Forgets everything so far."""
        self.prefills.clear()

    @property
    def samples(self) -> list[SampleReport]:
        """One report per sample of every prefill so far, in order. Copies from the device."""
        return [sample for prefill in self.prefills for sample in prefill.samples]

    def summary(self) -> dict[str, int | float]:
        """Sums over all prefills so far.

        Returns:
            ``samples``, ``audio_tokens_seen``, ``audio_tokens_kept``, ``keep_ratio`` (kept / seen), ``kv_bytes_held``
            and ``kv_bytes_saved`` (after prefill, padding included; 0 without a cache), ``flops`` and
            ``flops_unpruned`` (decoder layers, by formula, a scout pass included).
        """
        totals: dict[str, int | float] = dict.fromkeys(
            ("samples", "audio_tokens_seen", "audio_tokens_kept", "kv_bytes_held", "kv_bytes_saved", "flops",
             "flops_unpruned"), 0
        )  # fmt: skip
        for prefill in self.prefills:
            totals["samples"] += len(prefill.seen)
            totals["audio_tokens_seen"] += int(prefill.seen.sum())
            totals["audio_tokens_kept"] += int(prefill.counts.sum())
            for name, value in prefill.cost().items():
                totals[name] += value
        seen = totals["audio_tokens_seen"]
        return {**totals, "keep_ratio": totals["audio_tokens_kept"] / seen if seen else 1.0}

    def __str__(self) -> str:
        total = self.summary()
        if not total["samples"]:
            return "PruningReport: no audio seen"
        lines = [
            f"PruningReport: {total['samples']} samples, {total['audio_tokens_kept']} of {total['audio_tokens_seen']} "
            f"audio tokens kept ({total['keep_ratio']:.1%}) from layer {self.prefills[0].layer} on",
            f"  KV cache after prefill: {total['kv_bytes_held'] / 2**20:.1f} MiB held, "
            f"{total['kv_bytes_saved'] / 2**20:.1f} MiB saved",
            f"  decoder prefill: {total['flops'] / 1e9:.1f} of {total['flops_unpruned'] / 1e9:.1f} GFLOPs "
            f"({total['flops'] / total['flops_unpruned']:.1%})",
        ]
        if self.profile is not None:
            method = self.profile.metadata.get("method", "of unknown making")
            lines.append(f"  head profile: {self.profile.name} ({method})")
        for index, sample in enumerate(self.samples):
            route = ", ".join(f"{name} {value:.2f}" for name, value in sample.route.items()) or "not routed"
            lines.append(f"  sample {index}: kept {len(sample.kept)} of {sample.seen}; {route}")
        return "\n".join(lines)
