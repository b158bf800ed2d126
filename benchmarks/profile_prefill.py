"""What the time of one prefill, or of one decoding step, goes to: the top rows of torch's profiler.

    python benchmarks/profile_prefill.py --seconds 300 --keep_ratio 0.1 --layer 3
    python benchmarks/profile_prefill.py --seconds 300 --keep_ratio 0.1 --layer 3 --decode

Random weights of a model's shape; the audio encoder is left out.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from compare_peers import encoded_once
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from headrouter_pl import AudioTokenPruner
from headrouter_pl.cli.benchmark import FixedPrompt
from headrouter_pl.cli.tables import dump_figures, format_table, machine
from headrouter_pl.models.caches import cache_argument
from headrouter_pl.models.shapes import get_shape
from headrouter_pl.results import write_text


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="pocket")
    parser.add_argument("--seconds", type=float, default=300.0, help="of audio")
    parser.add_argument("--keep_ratio", type=float, default=0.3, help="1 for the model without a pruner")
    parser.add_argument("--layer", type=int, default=3, help="the prune layer K")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode", action="store_true", help="profile a step of decoding instead of the prefill")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--trace", help="a file for the trace, to look at in a browser")
    parser.add_argument("--output", help="a JSON file for the rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = get_shape(given.shape)
    model = shape.build(device=device, dtype=getattr(torch, given.dtype))
    inputs = shape.inputs(model, given.seconds)
    pruner = AudioTokenPruner(given.keep_ratio, layer=given.layer, tokenizer=FixedPrompt())
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
    engine = pruner.engine(model)
    with encoded_once(model):
        model(**shape.inputs(model, 2.0), logits_to_keep=1)  # what is loaded at first use
    with encoded_once(model), engine if given.keep_ratio < 1 else nullcontext():
        cache = DynamicCache()
        first = prefill(model, inputs, cache)
        if given.decode:
            step = {"input_ids": first, cache_argument(model): cache, "use_cache": True}
            model(**step)
            with profile(activities=activities) as found:
                model(**step)
        else:
            with profile(activities=activities) as found:
                prefill(model, inputs, DynamicCache())
    show(found, given)


def prefill(model: Any, inputs: Any, cache: Any) -> torch.Tensor:
    """The first token."""
    output = model(**inputs, **{cache_argument(model): cache}, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1:].argmax(-1)


def show(found: Any, given: argparse.Namespace) -> None:
    """Prints the operations that most time is spent in, and writes them where asked for."""
    name = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, name))
    total = sum(getattr(event, name) for event in events)
    rows = [
        {"operation": event.key, "calls": event.count, "ms": float(f"{getattr(event, name) / 1e3:.4g}"),
         "share": round(getattr(event, name) / total, 4)}
        for event in events[: given.rows]
    ]  # fmt: skip
    figures = {
        "device": machine(), "command": shlex.join(["python", "benchmarks/profile_prefill.py", *sys.argv[1:]]),
        "shape": given.shape, "length_s": given.seconds, "layer": given.layer, "keep_ratio": given.keep_ratio,
        "dtype": given.dtype, "of": "a decoding step" if given.decode else "a prefill",
        "seconds": float(f"{total / 1e6:.4g}"), "operations": sum(event.count for event in events), "rows": rows,
    }  # fmt: skip
    print(f"{figures['of']}: {figures['seconds']} s in {figures['operations']} operations, {figures['device']}\n")
    print(table(rows))
    if given.output:
        write_text(Path(given.output), dump_figures(figures))
        print(f"Written: {given.output}")
    if given.trace:
        found.export_chrome_trace(given.trace)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows, as Markdown."""
    return format_table([row | {"ms": f"{row['ms']:,.0f}", "share": f"{row['share']:.1%}"} for row in rows])


if __name__ == "__main__":
    main()
