"""``headrouter-pl benchmark``: decoder prefill, pruned over unpruned, in alternating runs."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

PROMPT = "Transcribe the speech."


def benchmark(
    seconds: float = 300.0,
    keep_ratio: float = 0.3,
    layer: int = 2,
    scorer: str = "headrouter",
    runs: int = 5,
    dtype: str = "float32",
    memory: bool = True,
    output: str | None = None,
) -> dict[str, Any]:
    """Measures what pruning saves on the pocket model, and what it costs.

    Every run is one whole forward on recorded speech; of it, the decoder's prefill is timed (synchronised on a GPU).
    Unpruned and pruned runs alternate, so that a drifting machine meets both alike. The overhead is the time spent on
    laying out, probing, routing and selecting, by the clock around those calls. Peak memory is the largest resident set
    during one forward of a fresh process (Linux; allocated GPU memory where there is a GPU).

    Args:
        seconds: Length of the audio; 25 audio tokens a second.
        keep_ratio: Share of the audio tokens to keep.
        layer: The prune layer K.
        scorer: The pruning method.
        runs: Counted runs of each kind, after one warm-up of each.
        dtype: Of the weights, as torch names it.
        memory: Whether to measure peak memory (two more processes).
        output: Where to write the figures as JSON, if anywhere.

    Returns:
        The figures.
    """
    from tqdm.auto import trange

    from headrouter_pl.cli.tables import format_table, machine
    from headrouter_pl.pruning import AudioTokenPruner
    from headrouter_pl.pruning.timing import time_prefills

    model, processor, inputs = _load(seconds, dtype)
    pruner = AudioTokenPruner(keep_ratio, layer=layer, scorer=scorer, tokenizer=processor)
    full, pruned, overhead = [], [], []
    summary: dict[str, int | float] = {}
    for run in trange(runs + 1, desc="unpruned / pruned runs"):
        with time_prefills(model) as times:
            _forward(model, inputs)
        full += times
        engine = pruner.engine(model)
        clock = _Clock(engine, ("_lay_out", "_read_query", "_read_key", "_read_rotary", "_choose"))
        engine.attach()
        try:
            with time_prefills(model) as times:
                _forward(model, inputs)
        finally:
            engine.detach()
        pruned += times
        overhead.append(clock.seconds)
        summary = engine.report.summary()
        if run == 0:  # the warm-up also fits the prompt router and allocates
            full, pruned, overhead = [], [], []

    median = statistics.median
    time_ratio, flop_ratio = median(pruned) / median(full), summary["flops"] / summary["flops_unpruned"]
    figures: dict[str, Any] = {
        "machine": machine(),
        "seconds": seconds,
        "keep_ratio": keep_ratio,
        "layer": layer,
        "scorer": scorer,
        "dtype": dtype,
        "runs": runs,
        "audio_tokens_seen": summary["audio_tokens_seen"],
        "audio_tokens_kept": summary["audio_tokens_kept"],
        "prefill_seconds_unpruned": full,
        "prefill_seconds_pruned": pruned,
        "time_ratio": time_ratio,
        "flop_ratio": flop_ratio,
        "time_over_flop_ratio": time_ratio / flop_ratio,
        "overhead_seconds": overhead,
        "overhead_share_of_unpruned": median(overhead) / median(full),
        "kv_bytes_held": summary["kv_bytes_held"],
        "kv_bytes_saved": summary["kv_bytes_saved"],
    }
    if memory:
        settings = (seconds, dtype, keep_ratio, layer, scorer)
        figures["peak_bytes_unpruned"] = _peak(*settings, prune=False)
        figures["peak_bytes_pruned"] = _peak(*settings, prune=True)
    spread = f"({min(full):.2f}-{max(full):.2f})", f"({min(pruned):.2f}-{max(pruned):.2f})"
    rows = [
        {"figure": "audio tokens", "value": f"{figures['audio_tokens_kept']} of {figures['audio_tokens_seen']} kept"},
        {"figure": "decoder prefill, unpruned", "value": f"{median(full):.2f} s {spread[0]}"},
        {"figure": "decoder prefill, pruned", "value": f"{median(pruned):.2f} s {spread[1]}"},
        {"figure": "time ratio", "value": f"{time_ratio:.3f}"},
        {"figure": "FLOP ratio, by formula", "value": f"{flop_ratio:.3f}"},
        {"figure": "time ratio / FLOP ratio", "value": f"{time_ratio / flop_ratio:.3f}"},
        {"figure": "probing + routing + selection", "value": f"{median(overhead) / median(full):.2%} of unpruned"},
        {"figure": "KV cache", "value": f"{summary['kv_bytes_held'] / 2**20:.1f} MiB held, "
         f"{summary['kv_bytes_saved'] / 2**20:.1f} MiB saved"},
    ]  # fmt: skip
    if memory:
        peaks = [f"{figures[f'peak_bytes_{kind}'] / 2**20:.0f}" for kind in ("unpruned", "pruned")]
        rows.append({"figure": "peak memory, unpruned -> pruned", "value": f"{' -> '.join(peaks)} MiB"})
    print(f"\nPocket model, {seconds:g} s of speech, keep_ratio {keep_ratio:g}, K = {layer}, scorer {scorer}, {dtype}; "
          f"medians (min-max) of {runs} alternating runs on {machine()}.")  # fmt: skip
    print(format_table(rows))
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(figures, indent=2) + "\n")
        print(f"Written: {output}")
    return figures


class _Clock:
    """Adds up the time an engine spends in some of its methods, which it replaces on the object."""

    def __init__(self, engine: Any, names: tuple[str, ...]) -> None:
        self.seconds = 0.0
        for name in names:
            setattr(engine, name, self._timed(getattr(engine, name)))

    def _timed(self, method: Any) -> Any:
        import torch

        def timed(*args: Any) -> Any:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            result = method(*args)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - started
            return result

        return timed


def _load(seconds: float, dtype: str) -> tuple[Any, Any, dict[str, Any]]:
    import torch

    from headrouter_pl.data import AudioPrompt, AudioPromptDataModule, demo_speech
    from headrouter_pl.models.pocket import load_pocket

    model, processor = load_pocket(dtype=getattr(torch, dtype))
    record = AudioPrompt(demo_speech(seconds)[0], PROMPT, key=f"{seconds:g} s")
    inputs = AudioPromptDataModule(processor).collate([record])["inputs"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    inputs["input_features"] = inputs["input_features"].to(model.dtype)
    return model, processor, inputs


def _forward(model: Any, inputs: dict[str, Any]) -> None:
    import torch

    with torch.inference_mode():
        model(**inputs, logits_to_keep=1, use_cache=True)


def _peak(*settings: Any, prune: bool) -> int:
    """Peak memory in bytes of a fresh process that runs one forward."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (*settings, prune))


def _peak_here(seconds: float, dtype: str, keep_ratio: float, layer: int, scorer: str, prune: bool) -> int:
    import contextlib

    import torch

    from headrouter_pl.pruning import AudioTokenPruner

    model, processor, inputs = _load(seconds, dtype)
    pruner = AudioTokenPruner(keep_ratio, layer=layer, scorer=scorer, tokenizer=processor)
    with pruner(model) if prune else contextlib.nullcontext():
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            _forward(model, inputs)
            return torch.cuda.max_memory_allocated()
        # Linux: forgets the peak of loading, and reads the peak of the forward alone.
        Path("/proc/self/clear_refs").write_text("5")
        _forward(model, inputs)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
