"""Ours beside the same pruning in the way of the peers (`benchmarks/peers`): time, memory, accuracy.

Prefill, decoding and KV bytes are measured on random weights of a model's shape, all methods taking turns:

    python benchmarks/compare_peers.py --seconds 300 60 --output docs/data/peers.json

Two further runs fill in rows of the file that the first one wrote. Peak memory is that of one prefill with its encoder,
in a fresh process (Linux), or allocated GPU memory:

    python benchmarks/compare_peers.py --seconds 300 60 --peaks --output docs/data/peers.json

Accuracy is asked for on the Pocket benchmark with trained weights, all methods on the same questions:

    python benchmarks/compare_peers.py --questions 200 --output docs/data/peers.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peers import PEERS
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache

from headrouter_pl import AudioTokenPruner
from headrouter_pl.benchmarking import cache_bytes, peak_bytes
from headrouter_pl.cli.benchmark import FixedPrompt
from headrouter_pl.cli.pocket import MAX_NEW_TOKENS, choose_items, load_model, weights_digest
from headrouter_pl.cli.tables import dump_figures, format_table, machine
from headrouter_pl.data.audio import read_audio
from headrouter_pl.data.pocket.benchmark import PocketBenchmark
from headrouter_pl.data.pocket.scoring import score_answer
from headrouter_pl.models.answering import EncodedPrompter
from headrouter_pl.models.caches import cache_argument
from headrouter_pl.models.encoded import encoded_audio
from headrouter_pl.models.shapes import get_shape
from headrouter_pl.pruning import timing
from headrouter_pl.results import write_text
from headrouter_pl.statistics import mean_over_tasks

OURS: dict[str, dict[str, Any]] = {
    "headrouter": {},
    "headrouter, evicted early": {"evict_early": True},
    "headrouter, generic": {"profile": "generic"},
    "headrouter-pl, scout": {"scorer": "scout", "layer": 2},
    "headrouter-pl, fastv": {"scorer": "fastv"},
    "headrouter-pl, dart": {"scorer": "dart"},
}
"""Our methods -> settings of the pruner: the default ones (for the pocket model weighted heads of its own pass), the
same with the caches of all layers cut, uniform weights, the scout pass, and the scores of two peers."""
UNPRUNED = "unpruned"
METHODS = (UNPRUNED, *OURS, *PEERS)
Inputs = Mapping[str, Tensor]


def layer_of(method: str, given: argparse.Namespace) -> int:
    """The prune layer K of a method."""
    return int(OURS.get(method, {}).get("layer", given.layer))


def pruned(method: str, model: Any, ratio: float, layer: int, tokenizer: Any) -> AbstractContextManager[Any]:
    """The context in which a model is pruned by a method."""
    if method == UNPRUNED:
        return nullcontext()
    if method in OURS:
        return AudioTokenPruner(ratio, **{"layer": layer, "tokenizer": tokenizer, **OURS[method]})(model)
    return PEERS[method](model, ratio, layer)


@torch.inference_mode()
def generate(model: Any, inputs: Inputs, tokens: int, eos: int | None = None) -> tuple[list[int], int, list[float]]:
    """Greedy decoding, the same for all methods, whose caches may hold fewer keys than the tokens they stand for.

    Args:
        model: The model, pruned or not.
        inputs: What its forward takes for one prompt, without a mask.
        tokens: Tokens to decode after the first, at most.
        eos: The token to stop at.

    Returns:
        The tokens, bytes of the cache after the prefill, and the seconds of each step of decoding.
    """
    cache = DynamicCache()
    held_in = {cache_argument(model): cache, "use_cache": True}
    output = model(**inputs, **held_in, logits_to_keep=1)
    held, length, found, steps = cache_bytes(cache), inputs["input_ids"].shape[1], [], []
    for step in range(tokens + 1):
        token = output.logits[:, -1:].argmax(-1)
        if eos is not None and int(token) == eos:
            break
        found.append(token)
        if step < tokens:
            started = timing.now()
            output = model(input_ids=token, position_ids=torch.full_like(token, length + step), **held_in)
            steps.append(timing.now() - started)
    return [int(token) for token in found], held, steps


def measure(given: argparse.Namespace, seconds: float) -> list[dict[str, Any]]:
    """Times and KV bytes of each method at each ratio, pruned / unpruned, in alternating runs."""
    if given.cpu_time:
        timing.now = time.process_time
    model, inputs = build(given, seconds)
    warm_up = get_shape(given.shape).inputs(model, min(seconds, 30.0))
    keys = [(UNPRUNED, 1.0), *((method, ratio) for ratio in given.keep_ratios for method in METHODS[1:])]
    prefills: dict[Any, list[float]] = {key: [] for key in keys}
    decodes: dict[Any, list[float]] = {key: [] for key in keys}
    held: dict[Any, int] = {}
    for method, ratio in keys:
        with pruned(method, model, ratio, given.layer, FixedPrompt()):
            generate(model, warm_up, 2)
    turns = [key for _ in range(given.runs) for key in keys]
    with encoded_once(model):
        for method, ratio in tqdm(turns, desc=f"{given.shape}, {seconds:g} s", unit="run"):
            context = pruned(method, model, ratio, given.layer, FixedPrompt())
            with context, timing.time_prefills(model) as times:
                _, held[method, ratio], steps = generate(model, inputs, given.tokens)
            prefills[method, ratio] += times
            decodes[method, ratio].append(statistics.median(steps))
    base = keys[0]
    return [
        {"peer": method, "keep_ratio": ratio, "shape": given.shape, "num_layers": given.num_layers,
         "length_s": seconds, "batch": 1, "layer": layer_of(method, given), "attention": "sdpa", "dtype": given.dtype,
         "prefill_ratio": rounded(statistics.median(prefills[key]) / statistics.median(prefills[base])),
         "prefill_s": spread(prefills[key]),
         "decode_ratio": rounded(statistics.median(decodes[key]) / statistics.median(decodes[base])),
         "decode_s": spread(decodes[key]), "kv_bytes": held[key], "kv_ratio": rounded(held[key] / held[base]),
         "runs": given.runs, "clock": "cpu" if given.cpu_time else "wall",
         "peak_memory_ratio": None, "peak_bytes": None, "accuracy": None, "n": None}
        for key in keys
        for method, ratio in [key]
    ]  # fmt: skip


@contextmanager
def encoded_once(model: torch.nn.Module) -> Iterator[None]:
    """Lets the audio encoder, where it is found, run once for all prefills of one input: it is not measured."""
    towers = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "audio_tower"]
    for tower in towers:
        first: list[Any] = []

        def forward(*args: Any, stock: Any = tower.forward, first: list[Any] = first, **kwargs: Any) -> Any:
            if not first:
                first.append(stock(*args, **kwargs))
            return first[0]

        tower.forward = forward
    try:
        yield
    finally:
        for tower in towers:
            del tower.forward


def build(given: argparse.Namespace, seconds: float) -> tuple[Any, dict[str, Tensor]]:
    """A random model of the shape, and its inputs."""
    torch.set_num_threads(given.threads)
    shape = get_shape(given.shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = shape.build(
        device=device, dtype=getattr(torch, given.dtype), num_layers=given.num_layers,
        encoder_layers=given.encoder_layers,
    )  # fmt: skip
    return model, shape.inputs(model, seconds)


def peak_of(given: argparse.Namespace, seconds: float, method: str, ratio: float) -> int:
    """Peak memory of one prefill, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        measured = pool.apply(peak_here, (given, seconds, method, ratio))
    if measured is None:
        raise SystemExit("--peaks needs Linux or a GPU.")
    return measured


def peak_here(given: argparse.Namespace, seconds: float, method: str, ratio: float) -> int | None:
    model, inputs = build(given, seconds)
    with pruned(method, model, ratio, given.layer, FixedPrompt()):
        return peak_bytes(model, inputs)


def ask(given: argparse.Namespace) -> dict[str, Any]:
    """Whether each method at each ratio answers each of so many questions rightly.

    Returns:
        ``"right"``: (method, ratio) -> for each question; ``"tasks"`` of the questions; a digest of the ``"weights"``.
    """
    torch.set_num_threads(given.threads)
    model, processor = load_model(given.weights, None, getattr(torch, given.answer_dtype))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    benchmark = PocketBenchmark.open(given.split)
    items = choose_items(benchmark.items, given.lengths, None)[: given.questions]
    prompter = EncodedPrompter(model, processor)
    rate, eos = processor.feature_extractor.sampling_rate, processor.tokenizer.eos_token_id
    keys = [(UNPRUNED, 1.0), *((method, ratio) for ratio in given.keep_ratios for method in METHODS[1:])]
    right: dict[tuple[str, float], list[bool]] = {key: [] for key in keys}
    with tqdm(total=len(items), desc="asking", unit="question") as bar:
        for audio, scene in groupby(items, key=lambda item: item.audio):
            encoded = prompter.encode(read_audio(benchmark.folder / audio, rate))
            with encoded_audio(model):
                for item in scene:
                    inputs = prompter.inputs(encoded, item.prompt)
                    del inputs["attention_mask"]  # one sample without padding
                    for method, ratio in keys:
                        with pruned(method, model, ratio, given.layer, processor):
                            answer, _, _ = generate(model, inputs, MAX_NEW_TOKENS - 1, eos)
                        text = processor.tokenizer.decode(answer, skip_special_tokens=True).strip()
                        right[method, ratio].append(score_answer(item, text).right)
                    bar.update()
    return {"right": right, "tasks": [item.task for item in items], "weights": weights_digest(model)}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def spread(seconds: list[float]) -> list[float]:
    """Median, lowest, highest."""
    return [rounded(value) for value in (statistics.median(seconds), min(seconds), max(seconds))]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="pocket")
    parser.add_argument("--seconds", type=float, nargs="+", default=[300.0], help="of audio")
    parser.add_argument("--keep_ratios", type=float, nargs="+", default=[0.3, 0.1])
    parser.add_argument("--layer", type=int, default=3, help="the prune layer K; 2 for the scout pass, always")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num_layers", type=int, help="decoder layers, to measure a slice")
    parser.add_argument("--encoder_layers", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="to decode")
    parser.add_argument("--cpu_time", action="store_true", help="of the process, where it shares its core")
    parser.add_argument("--peaks", action="store_true", help="measure peak memory alone")
    parser.add_argument("--questions", type=int, default=0, help="of the Pocket benchmark to ask, alone")
    parser.add_argument("--weights", default="shipped", help="to answer with")
    parser.add_argument("--answer_dtype", default="bfloat16", help="of these weights")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--lengths", type=int, nargs="+", help="seconds of the scenes to ask about; all by default")
    parser.add_argument("--output", help="a JSON file; for peaks and questions one of times")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = parse(arguments)
    command = shlex.join(["python", "benchmarks/compare_peers.py", *(sys.argv[1:] if arguments is None else arguments)])
    known = json.loads(Path(given.output).read_text()) if given.output and Path(given.output).exists() else None
    if given.questions or given.peaks:
        if known is None:
            raise SystemExit("This goes into the rows of --output: measure first, without --questions and --peaks.")
        if any(row["layer"] != layer_of(row["peer"], given) for row in known["rows"]):
            raise SystemExit(f"The rows of {given.output} are of another --layer.")
        if missing := set(METHODS) - {row["peer"] for row in known["rows"]}:
            raise SystemExit(f"{given.output} has no rows of {', '.join(sorted(missing))}: measure times anew.")
        figures = dict(known)
        if given.peaks:
            figures = add_peaks(figures, given, command)
        if given.questions:
            figures = add_accuracy(figures, ask(given), given, command)
        write(figures, given.output)
    else:
        figures = {"device": None, "command": command, "rows": [], "peaks": None, "accuracy": None}
        for seconds in given.seconds:
            figures["rows"] += measure(given, seconds)
            figures["device"] = machine()
            write(figures, given.output)
    return figures


def add_peaks(figures: Mapping[str, Any], given: argparse.Namespace, command: str) -> dict[str, Any]:
    """Figures of the times with the peak memory in the rows of these lengths and ratios."""
    rows = [dict(row) for row in figures["rows"]]
    wanted = [row for row in rows
              if row["length_s"] in given.seconds and row["keep_ratio"] in (1.0, *given.keep_ratios)]  # fmt: skip
    for row in tqdm(wanted, desc="peak memory", unit="run"):
        row["peak_bytes"] = peak_of(given, row["length_s"], row["peer"], row["keep_ratio"])
    whole = {row["length_s"]: row["peak_bytes"] for row in wanted if row["peer"] == UNPRUNED}
    for row in wanted:
        row["peak_memory_ratio"] = rounded(row["peak_bytes"] / whole[row["length_s"]])
    return {**figures, "rows": rows, "peaks": {"command": command, "device": machine()}}


def write(figures: Mapping[str, Any], path: str | None) -> None:
    """Prints the table, and writes the figures where asked for."""
    print(table(figures["rows"]))
    if path:
        write_text(Path(path), dump_figures(figures))
        print(f"Written: {path}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The ratios, a line for each row."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return format_table([
        {"audio": f"{row['length_s']:g} s", "method": row["peer"], "kept": f"{row['keep_ratio']:g}",
         "prefill": cell(row["prefill_ratio"]), "decode": cell(row["decode_ratio"]),
         "peak memory": cell(row["peak_memory_ratio"]), "KV MiB": f"{row['kv_bytes'] / 2**20:.1f}",
         "accuracy": cell(row["accuracy"])}
        for row in rows
    ])  # fmt: skip


def add_accuracy(
    figures: Mapping[str, Any], asked: Mapping[str, Any], given: argparse.Namespace, command: str
) -> dict[str, Any]:
    """Figures of the times with the accuracy, a mean over tasks, in their rows, at all lengths the same."""
    rows = []
    for row in figures["rows"]:
        right = asked["right"].get((row["peer"], row["keep_ratio"]))
        if right is not None:
            row = row | {"accuracy": rounded(float(mean_over_tasks(right, asked["tasks"]))), "n": len(right)}
        rows.append(row)
    told = {"command": command, "device": machine(), "weights": asked["weights"], "split": given.split,
            "layer": given.layer, "dtype": given.answer_dtype, "n": len(asked["tasks"])}  # fmt: skip
    return {**figures, "rows": rows, "accuracy": told}


if __name__ == "__main__":
    main()
