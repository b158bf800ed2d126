"""Speed and memory of a model with and without a pruner, by the clock, in alternating runs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from headrouter_pl.models.caches import cache_argument
from headrouter_pl.models.checkpoints import ENCODER
from headrouter_pl.pruning.caches import CompactKeys
from headrouter_pl.pruning.engine import PruningEngine
from headrouter_pl.pruning.prober import Prober
from headrouter_pl.pruning.timing import now, time_prefills

__all__ = [
    "PARTS", "Run", "cache_bytes", "compare_runs", "count_syncs", "linear_fit", "measure", "part_clock",
    "peak_bytes", "run_once", "time_routing",
]  # fmt: skip

PARTS = ("layout", "probing", "selection")
"""What the time of the overhead is told apart into. ``"routing"``, inside of them, is the router's and the reading of
prompts."""


@dataclass
class Run:
    """One prefill with the decoding after it. Times in seconds.

    Attributes:
        prefill: The decoder's layers over the prompt, with what a pruner does there.
        encoder: The audio encoder; None where it is not found.
        first_token: The whole forward over the prompt, to the first token.
        decode: Decoding, a token.
        bare_decode: Decoding on the same pruned cache with the hooks removed, a token; None without a pruner, and with
            eager attention, for which that cannot be done.
        kv_bytes: Bytes of keys and values in the cache after the prefill.
        overhead: Time spent in each of :data:`PARTS` and in routing; empty without a pruner.
    """

    prefill: float
    encoder: float | None
    first_token: float
    decode: float
    bare_decode: float | None
    kv_bytes: int
    overhead: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def run_once(model: Any, inputs: Mapping[str, Tensor], engine: PruningEngine | None = None, *, tokens: int = 8) -> Run:
    """Runs and times one prefill, and decoding by the likeliest token.

    Args:
        model: The model.
        inputs: What its forward takes for the prompt; samples of one length, without padding.
        engine: A pruner's hooks for it, not attached; None for the model alone.
        tokens: How many tokens to decode after the first; 0 for none, whose times are then 0.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    held_in = {cache_argument(model): cache, "use_cache": True}
    apart = engine is not None and torch.cuda.is_available()  # a synchronised clock inside would slow the prefill down
    overhead = {} if engine is None or not apart else _timed_parts(model, inputs, engine)
    clock: AbstractContextManager[dict[str, float]] = nullcontext({}) if engine is None or apart else part_clock(engine)
    with clock as parts:
        with _attached(engine), time_prefills(model) as prefills, _time_encoder(model) as encoders:
            started = now()
            output = model(**inputs, **held_in, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            first_token = now() - started
            held = cache_bytes(cache)
            decode = _decode(model, token, cache, tokens)
        overhead = overhead or dict(parts)
    bare = None
    # Eager attention is given masks even for decoding, which without the hooks do not fit the pruned layers.
    if engine is not None and tokens and model.config._attn_implementation != "eager":
        cache.crop(-tokens)
        CompactKeys.take_off(cache)
        bare = _decode(model, token, cache, tokens)
    return Run(sum(prefills), sum(encoders) if encoders else None, first_token, decode, bare, held, overhead)


def _decode(model: Any, token: Tensor, cache: Any, tokens: int) -> float:
    """Seconds a token: the median of so many steps."""
    held_in, steps = {cache_argument(model): cache, "use_cache": True}, []
    for _ in range(tokens):
        started = now()
        token = model(input_ids=token, **held_in).logits[:, -1:].argmax(-1)
        steps.append(now() - started)
    return median(steps) if steps else 0.0


def cache_bytes(cache: Any) -> int:
    """Bytes of keys and values that a dynamic cache holds."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized)


def _attached(engine: PruningEngine | None) -> AbstractContextManager[Any]:
    if engine is None:
        return nullcontext()
    engine.report.clear()
    return engine


def _timed_parts(model: Any, inputs: Mapping[str, Tensor], engine: PruningEngine) -> dict[str, float]:
    with part_clock(engine) as parts, _attached(engine):
        model(**inputs, use_cache=True, logits_to_keep=1)
    return dict(parts)


@contextmanager
def _time_encoder(model: nn.Module) -> Iterator[list[float]]:
    """Collects the seconds of each pass through the audio encoder; none where it has another name."""
    seconds: list[float] = []
    started: list[float] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        seconds.append(now() - started.pop())

    hooks = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == ENCODER:
            hooks.append(module.register_forward_pre_hook(lambda *_: started.append(now())))
            hooks.append(module.register_forward_hook(stop))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def part_clock(engine: PruningEngine) -> Iterator[dict[str, float]]:
    """Adds up the time that an engine spends in each of :data:`PARTS`, and in routing.

    Time in a call inside of another one counts for the inner one alone. Methods are replaced on the objects before the
    engine is attached, and put back.

    Yields:
        Part -> seconds so far.
    """
    spent = dict.fromkeys((*PARTS, "routing"), 0.0)
    under_way: list[tuple[str, float]] = []

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = now()
            if under_way:
                outer, since = under_way[-1]
                spent[outer] += start - since
            under_way.append((part, start))
            try:
                return method(*args, **kwargs)
            finally:
                end = now()
                spent[part] += end - under_way.pop()[1]
                if under_way:
                    under_way[-1] = under_way[-1][0], end

        return call

    router = getattr(engine.scorer, "router", None)
    replaced: list[tuple[Any, str, str]] = [(engine, "_lay_out", "layout"), (engine, "_choose", "selection")]
    replaced += [(engine.prober, name, "probing") for name in Prober.WORK]
    replaced += [] if engine.prompts is None else [(engine.prompts, "read", "routing")]
    replaced += [] if router is None else [(router, "route", "routing")]
    for owner, name, part in replaced:
        vars(owner)[name] = timed(part, getattr(owner, name))
    try:
        yield spent
    finally:
        for owner, name, _ in replaced:
            del vars(owner)[name]


def compare_runs(
    model: Any,
    inputs: Mapping[str, Tensor],
    engines: Mapping[str, PruningEngine],
    *,
    runs: int = 5,
    tokens: int = 8,
    progress: Callable[[], None] = lambda: None,
) -> dict[str | None, list[Run]]:
    """Alternating runs of the model alone (under None) and under each pruner, after a warm-up of each.

    Alternating, so that a machine that drifts meets all alike.

    Args:
        model: The model.
        inputs: What its forward takes.
        engines: Name -> a pruner's hooks for it, not attached.
        runs: Counted runs of each.
        tokens: Tokens to decode in each.
        progress: Called after each run.
    """
    found: dict[str | None, list[Run]] = {None: [], **{name: [] for name in engines}}
    for number in range(runs + 1):
        for name, kept in found.items():
            run = run_once(model, inputs, None if name is None else engines[name], tokens=tokens)
            if number:  # the warm-up also fits the prompt router and allocates
                kept.append(run)
            progress()
    return found


def measure(alone: Sequence[Run], pruned: Sequence[Run], engine: PruningEngine) -> dict[str, Any]:
    """Figures of the runs under one pruner, against those of the model alone.

    Args:
        alone: Runs of the model alone.
        pruned: Runs under the pruner, in the same order.
        engine: Its hooks, with the report of the last run.

    Returns:
        Ratios are pruned / alone, of medians; times in seconds, as ``[median, lowest, highest]``.

        - ``audio_tokens``, ``audio_tokens_kept``, ``kv_bytes`` (found in the cache), ``kv_bytes_formula``,
          ``kv_bytes_unpruned`` (by formula).
        - ``prefill_ratio``, ``ideal_ratio`` (of FLOPs of the decoder's layers, by formula), ``first_token_ratio``,
          ``decode_ratio``, ``decode_hooks_ratio`` (with hooks / right after on the same cache without: the median of
          the runs' ratios).
        - ``overhead_share``: of the unpruned prefill, and ``overhead_parts_s`` (medians).
        - ``encoder_s``, and ``prefill_s``, ``first_token_s``, ``decode_s`` with those ``_unpruned``.
    """
    summary = engine.report.summary()
    spans = {
        f"{name}_s{suffix}": _spread([getattr(run, name) for run in of])
        for name in ("prefill", "first_token", "decode")
        for suffix, of in (("", pruned), ("_unpruned", alone))
    }
    encoders = [run.encoder for run in alone if run.encoder is not None]
    parts = {part: median(run.overhead[part] for run in pruned) for part in pruned[0].overhead}
    total = median(sum(run.overhead.values()) for run in pruned)
    hooks = [run.decode / run.bare_decode for run in pruned if run.bare_decode]

    def ratio(name: str) -> float | None:
        unpruned = spans[f"{name}_s_unpruned"][0]
        return _rounded(spans[f"{name}_s"][0] / unpruned) if unpruned else None

    return {
        "audio_tokens": summary["audio_tokens_seen"],
        "audio_tokens_kept": summary["audio_tokens_kept"],
        "prefill_ratio": ratio("prefill"),
        "ideal_ratio": _rounded(summary["flops"] / summary["flops_unpruned"]),
        "overhead_share": _rounded(total / spans["prefill_s_unpruned"][0]),
        "kv_bytes": pruned[-1].kv_bytes,
        "kv_bytes_formula": summary["kv_bytes_held"],
        "kv_bytes_unpruned": summary["kv_bytes_held"] + summary["kv_bytes_saved"],
        "first_token_ratio": ratio("first_token"),
        "decode_ratio": ratio("decode"),
        "decode_hooks_ratio": _rounded(median(hooks)) if hooks else None,
        "overhead_parts_s": {part: _rounded(seconds) for part, seconds in parts.items()},
        "encoder_s": _spread(encoders) if encoders else None,
        **spans,
        "runs": len(pruned),
    }


def _spread(values: Sequence[float]) -> list[float]:
    return [_rounded(value) for value in (median(values), min(values), max(values))]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


@torch.inference_mode()
def peak_bytes(model: Any, inputs: Mapping[str, Tensor], engine: PruningEngine | None = None) -> int | None:
    """Peak memory during one prefill, of the whole process: allocated GPU memory, or the resident set.

    On a CPU the process must be a fresh one: memory that was freed before may still be resident. None on a CPU of
    another system than Linux, which alone says what the peak of a stretch was.
    """
    if not torch.cuda.is_available() and not Path("/proc/self/clear_refs").exists():
        return None
    with _attached(engine):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        model(**inputs, use_cache=True, logits_to_keep=1)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


@torch.inference_mode()
def count_syncs(model: Any, inputs: Mapping[str, Tensor], engine: PruningEngine | None = None) -> list[int]:
    """Host-device synchronisations of one prefill and of one decoding step, as torch's debug mode reports them.

    Needs a GPU.
    """
    from transformers import DynamicCache

    held_in, counts = {cache_argument(model): DynamicCache(), "use_cache": True}, []
    step: dict[str, Any] = {**inputs, "logits_to_keep": 1}
    with _attached(engine):
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    output = model(**step, **held_in)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            counts.append(sum("synchronizing" in str(warning.message) for warning in caught))
            step = {"input_ids": output.logits[:, -1:].argmax(-1)}
    return counts


def time_routing(classify: Callable[[str], Any], prompts: Sequence[str]) -> float:
    """Median seconds that a prompt router takes for a prompt that it has not seen."""
    classify(prompts[0])
    times = []
    for prompt in prompts[1:]:
        started = time.perf_counter()
        classify(prompt)
        times.append(time.perf_counter() - started)
    return median(times)


def linear_fit(lengths: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Least-squares line through times over lengths.

    Returns:
        ``seconds_per_second`` (slope), ``offset_s``, and ``r2``, the share of the variance that the line explains.

    Example:
        >>> linear_fit([30, 60, 120], [0.003, 0.006, 0.012])
        {'seconds_per_second': 0.0001, 'offset_s': 0.0, 'r2': 1.0}
    """
    import numpy as np

    x, y = np.asarray(lengths, dtype=float), np.asarray(seconds, dtype=float)
    slope, offset = np.polyfit(x, y, 1)
    residual = y - slope * x - offset
    spread = ((y - y.mean()) ** 2).sum()
    r2 = 1.0 if spread == 0 else 1 - (residual**2).sum() / spread
    return {"seconds_per_second": _rounded(slope), "offset_s": round(float(offset), 9) + 0.0, "r2": _rounded(r2)}
