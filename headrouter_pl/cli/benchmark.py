"""``headrouter-pl benchmark``: what pruning saves of time and memory, and what it costs, on any model and length."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrouter_pl.errors import ConfigurationError
from headrouter_pl.results import check_output

if TYPE_CHECKING:
    from torch import Tensor

    from headrouter_pl.pruning.engine import PruningEngine

PROMPT = "Transcribe the speech."
"""What a checkpoint is asked, and what the prompt router reads of a model whose text means nothing."""


def benchmark(
    model: str = "pocket",
    lengths: list[float] = [30.0, 300.0],  # noqa: B006 (never changed; jsonargparse wants a list)
    keep_ratios: list[float] = [1.0, 0.7, 0.5, 0.3, 0.1],  # noqa: B006
    batch_sizes: list[int] = [1],  # noqa: B006
    layers: list[int] = [3],  # noqa: B006
    attention: list[str] = ["sdpa"],  # noqa: B006
    dtype: str = "float32",
    scorer: str = "headrouter",
    profile: str = "auto",
    num_layers: int | None = None,
    encoder_layers: int | None = None,
    threads: int | None = None,
    runs: int = 5,
    decode_tokens: int = 16,
    memory: bool = True,
    max_minutes: float | None = None,
    log: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Measures prefill, time to first token, decoding and memory, pruned over unpruned.

    The model alone and under each setting of the pruner take turns, so that a machine that drifts meets all alike.
    Times are the clock's, synchronised on a GPU; the first run of each is not counted. Time to the first token is the
    whole forward, encoder included, without the making of mel features. The overhead is laying out, probing, routing
    and selecting; on a GPU it is timed in runs of its own. Peak memory is allocated GPU memory, or on a CPU (Linux) the
    resident set during one prefill in a fresh process.

    With a log, rows are kept as soon as they are there, and a run that was stopped goes on where it was.

    Args:
        model: A shape of headrouter_pl.models.shapes, with random weights (pocket, qwen2_5_omni_3b, qwen2_5_omni_7b,
            qwen2_audio_7b, voxtral_3b, audio_flamingo_3), or a checkpoint: its folder, or a name such as "owner/model".
        lengths: Seconds of audio.
        keep_ratios: Shares of the audio tokens to keep. 1 keeps all, and shows what the hooks alone cost.
        batch_sizes: Samples in a batch, all of one length.
        layers: Prune layers K.
        attention: Attention implementations, as in from_pretrained.
        dtype: Of the weights, as torch names it.
        scorer: The pruning method.
        profile: Head weights, where the scorer has them: a name or a file, as the callback takes it.
        num_layers: Decoder layers of a shape, to measure a slice of what does not fit; the rows say so.
        encoder_layers: Layers of its audio encoder, likewise.
        threads: Processor threads for torch; as torch has it by default.
        runs: Counted runs of each kind, after one warm-up of each.
        decode_tokens: Tokens to decode in each; 0 to measure prefill alone.
        memory: Whether to measure peak memory (on a CPU a fresh process for each kind).
        max_minutes: Begin no new length, batch size or attention after so long.
        log: Where to keep rows, as JSON lines.
        output: Where to write the figures, if anywhere: a .json file, with a page (.md) and a figure (.png) beside it.

    Returns:
        The figures.
    """
    from importlib.metadata import version

    from headrouter_pl.cli import COMMAND_LINE
    from headrouter_pl.cli.benchmark_report import format_rows, write_report
    from headrouter_pl.cli.tables import machine
    from headrouter_pl.results import ResultsLog

    axes: dict[str, list[Any]] = {
        "lengths": lengths, "keep_ratios": keep_ratios, "batch_sizes": batch_sizes, "layers": layers,
        "attention": attention,
    }  # fmt: skip
    _check(axes, runs=runs, threads=threads, decode_tokens=decode_tokens, output=output)
    bench = _Bench(model, dtype, num_layers, encoder_layers, threads)
    fixed = {"shape": model, "dtype": dtype, "num_layers": bench.num_layers, "encoder_layers": encoder_layers,
             "scorer": scorer, "profile": profile}  # fmt: skip
    configuration = {
        **fixed, "keep_ratios": keep_ratios, "layers": layers, "runs": runs, "decode_tokens": decode_tokens,
        "memory": memory, "device": machine(), "torch": version("torch"), "transformers": version("transformers"),
    }  # fmt: skip
    results = ResultsLog(log, configuration)
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    blocks = [(kind, size, length) for kind in attention for size in batch_sizes for length in lengths]
    left = 0
    for kind, size, length in blocks:
        settings = {
            f"{kind} x{size} {length:g}s K{layer} {ratio:g}": (layer, ratio)
            for layer in layers
            for ratio in keep_ratios
        }
        if settings.keys() <= results.rows.keys():
            continue
        if deadline is not None and time.monotonic() >= deadline:
            left += 1
            continue
        block = _Block(kind, size, length, {"scorer": scorer, "profile": profile}, settings)
        found = _measure_block(bench, block, runs, decode_tokens, memory)
        results.add([
            {"key": key, **fixed, "length_s": length, "batch": size, "attention": kind, "layer": layer,
             "keep_ratio": ratio, **found[key]}
            for key, (layer, ratio) in settings.items()
        ])  # fmt: skip
    rows = [{name: value for name, value in row.items() if name != "key"} for row in results.rows.values()]
    figures = {
        "device": machine(),
        "command": COMMAND_LINE.get() or "headrouter_pl.cli.benchmark.benchmark",
        "torch": version("torch"),
        "transformers": version("transformers"),
        "new_prompt_routing_s": _routing_seconds(),
        "rows": rows,
        "scaling": scaling(rows),
    }
    if rows:
        print(format_rows(rows))
    if left:
        print(f"{left} of {len(blocks)} lengths, batch sizes and attentions are left: give the same log to go on.")
    if output is not None:
        write_report(figures, Path(output))
    return figures


def scaling(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the overhead grows with the length: a line through it for each kind of row of three lengths or more."""
    from headrouter_pl.benchmarking import linear_fit

    kinds: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["batch"], row["attention"], row["layer"], row["keep_ratio"]), []).append(row)
    fits = []
    for (batch, attention, layer, ratio), of in kinds.items():
        if len({row["length_s"] for row in of}) > 2:
            seconds = [sum(row["overhead_parts_s"].values()) for row in of]
            fit = linear_fit([row["length_s"] for row in of], seconds)
            fits.append({"batch": batch, "attention": attention, "layer": layer, "keep_ratio": ratio, **fit})
    return fits


def _check(
    axes: Mapping[str, Sequence[Any]], *, runs: int, threads: int | None, decode_tokens: int, output: str | None
) -> None:
    for name, values in axes.items():
        if not values or len(set(values)) < len(values):
            raise ConfigurationError(f"{name} must name at least one value, and each once, got {list(values)}.")
    for name, number in (
        ("batch_sizes", min(axes["batch_sizes"])),
        ("runs", runs),
        ("threads", 1 if threads is None else threads),
    ):
        if number < 1:
            raise ConfigurationError(f"{name} must be at least 1, got {number}.")
    if decode_tokens < 0:
        raise ConfigurationError(f"decode_tokens must be at least 0, got {decode_tokens}.")
    if output is not None and Path(output).suffix != ".json":
        raise ConfigurationError(f"output must be a .json file; its page and figure go beside it. Got {output!r}.")
    if output is not None:
        check_output(output)


@dataclass(frozen=True)
class _Block:
    """What is measured in turns: one input, by the model alone and under each setting ``(layer, keep ratio)``.

    ``pruner`` holds further settings, which all share.
    """

    attention: str
    batch: int
    length: float
    pruner: Mapping[str, Any]
    settings: Mapping[str, tuple[int, float]]


class FixedPrompt:
    """Stands in for the tokenizer of a model of random weights, whose text means nothing."""

    def batch_decode(self, sequences: Sequence[Any], *, skip_special_tokens: bool) -> list[str]:
        """The one prompt for each sequence."""
        return [PROMPT] * len(sequences)


class _Bench:
    """A model to measure, with inputs of any length."""

    def __init__(
        self, name: str, dtype: str, num_layers: int | None, encoder_layers: int | None, threads: int | None
    ) -> None:
        import torch

        from headrouter_pl.models import find_lalm
        from headrouter_pl.models.checkpoints import get_dtype
        from headrouter_pl.models.shapes import get_shape

        self.arguments = name, dtype, num_layers, encoder_layers, threads
        if threads is not None:
            torch.set_num_threads(threads)
        weights_dtype = get_dtype(dtype)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        checkpoint = "/" in name or Path(name).is_dir()
        self.shape = None if checkpoint else get_shape(name)
        self.tokenizer: Any = FixedPrompt()
        if self.shape is not None:
            self.model = self.shape.build(
                device=device, dtype=weights_dtype, num_layers=num_layers, encoder_layers=encoder_layers
            )
        else:
            if (num_layers, encoder_layers) != (None, None):
                raise ConfigurationError("num_layers and encoder_layers are for shapes; a checkpoint is run whole.")
            from headrouter_pl.lalm_module import LALMModule

            module = LALMModule(name, dtype=dtype).eval().to(device)
            self.model, self.tokenizer = module.model, module.processor
        self.num_layers = find_lalm(self.model).num_layers

    def inputs(self, block: _Block) -> dict[str, Tensor]:
        """Inputs of a block, with the model set to its attention implementation."""
        self.model.set_attn_implementation(block.attention)
        if self.shape is not None:
            return self.shape.inputs(self.model, block.length, batch=block.batch)
        import numpy as np

        from headrouter_pl.data import AudioPrompt, AudioPromptDataModule

        data = AudioPromptDataModule(self.tokenizer)
        noise = np.random.default_rng(0).normal(scale=0.1, size=round(block.length * data.sampling_rate))
        collated = data.collate([AudioPrompt(noise.astype(np.float32), PROMPT)] * block.batch)
        if any(collated["cut_seconds"]):
            raise ConfigurationError(
                f"The processor of {self.arguments[0]} cuts audio of {block.length:g} s. Take shorter lengths."
            )
        device, dtype = self.model.device, self.model.dtype
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in collated["inputs"].items()
        }
        if inputs["attention_mask"].bool().all():
            del inputs["attention_mask"]  # as in the inputs of shapes: none is needed, and none is made
        return inputs

    def engine(self, pruner: Mapping[str, Any], layer: int, ratio: float) -> PruningEngine:
        """A pruner's hooks, not attached."""
        from headrouter_pl.pruning import AudioTokenPruner

        return AudioTokenPruner(ratio, layer=layer, tokenizer=self.tokenizer, **pruner).engine(self.model)


def _measure_block(bench: _Bench, block: _Block, runs: int, tokens: int, memory: bool) -> dict[str, dict[str, Any]]:
    """Figures of each setting."""
    import torch
    from tqdm.auto import tqdm

    from headrouter_pl.benchmarking import compare_runs, count_syncs, measure, peak_bytes

    inputs = bench.inputs(block)
    engines = {key: bench.engine(block.pruner, *setting) for key, setting in block.settings.items()}
    title = f"{block.attention}, {block.batch} x {block.length:g} s"
    with tqdm(total=(runs + 1) * (1 + len(engines)), desc=title, unit="run") as bar:
        found = compare_runs(bench.model, inputs, engines, runs=runs, tokens=tokens, progress=bar.update)
    rows = {key: measure(found[None], found[key], engine) for key, engine in engines.items()}
    cuda = torch.cuda.is_available()

    def peak(key: str | None) -> int | None:
        if not memory:
            return None
        if cuda:
            return peak_bytes(bench.model, inputs, None if key is None else engines[key])
        return _peak_of_fresh_process(bench.arguments, block, key)

    unpruned, alone = peak(None), count_syncs(bench.model, inputs) if cuda else []
    for key, engine in engines.items():
        pruned = peak(key)
        syncs = count_syncs(bench.model, inputs, engine) if cuda else []
        rows[key] |= {
            "peak_bytes": pruned,
            "peak_bytes_unpruned": unpruned,
            "peak_memory_ratio": round(pruned / unpruned, 4) if pruned and unpruned else None,
            # In the prefill and in a step of decoding.
            "syncs_added": [under - before for under, before in zip(syncs, alone, strict=True)] or None,
        }
    return rows


def _peak_of_fresh_process(*arguments: Any) -> int | None:
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: int | None = pool.apply(_peak_here, arguments)
    return found


def _peak_here(arguments: tuple[Any, ...], block: _Block, key: str | None) -> int | None:
    from headrouter_pl.benchmarking import peak_bytes

    bench = _Bench(*arguments)
    engine = None if key is None else bench.engine(block.pruner, *block.settings[key])
    return peak_bytes(bench.model, bench.inputs(block), engine)


def _routing_seconds() -> float:
    """Median seconds that the prompt router takes for a new prompt; one that it knows costs a look-up."""
    from headrouter_pl.benchmarking import time_routing
    from headrouter_pl.routers.joint import PromptPrior

    prompts = [f"What is said in part {number} of the recording?" for number in range(101)]
    return float(f"{time_routing(PromptPrior()._probabilities, prompts):.4g}")
