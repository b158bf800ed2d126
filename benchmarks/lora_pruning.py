"""What pruning during LoRA fine-tuning costs in accuracy and saves in step time, on the trained pocket model.

For each keep ratio, the same adapter is trained on the same questions of the Pocket benchmark's train split, in the
same order, with training steps pruned to that ratio (1: not at all). Then validation questions are asked unpruned and
pruned to that ratio. Step times are taken apart, in alternating steps of one model, so that a drifting machine meets
all alike.

    python benchmarks/lora_pruning.py --output docs/data/lora_pruning.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from peft import LoraConfig
from tqdm.auto import tqdm

from headrouter_pl import AudioTokenPruner, HeadRouterCallback, LALMModule
from headrouter_pl.callbacks import AdapterExport
from headrouter_pl.cli.tables import dump_figures, format_table, machine
from headrouter_pl.data import AudioPromptDataModule
from headrouter_pl.data.pocket.benchmark import PocketBenchmark, PocketItem
from headrouter_pl.data.pocket.scoring import score_answer
from headrouter_pl.results import write_text

DECODER = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def main() -> None:
    """Trains, asks, times, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ratios", default=[1.0, 0.7, 0.5], type=float, nargs="+")
    parser.add_argument("--lengths", default=[30, 60], type=int, nargs="+", help="seconds of the scenes")
    parser.add_argument("--steps", default=70, type=int, help="training steps, of one question each")
    parser.add_argument("--questions", default=60, type=int, help="of the validation split")
    parser.add_argument("--timed", default=6, type=int, help="steps timed at each ratio")
    parser.add_argument("--layer", default=3, type=int, help="the prune layer K")
    parser.add_argument("--profile", default="auto", help="head weights")
    parser.add_argument("--folder", default=Path("outputs/lora_pruning"), type=Path, help="adapters and answers")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    given = parser.parse_args()
    train = pick("train", given.lengths, given.steps)
    asked = pick("validation", given.lengths, given.questions)
    rows = [tune(ratio, train, asked, given) for ratio in given.ratios]
    times = time_steps(train[: given.timed], given.ratios, given.layer, given.profile)
    whole = statistics.median(times[1.0]) if 1.0 in times else None
    for row in rows:
        row["step_seconds"] = round(statistics.median(times[row["trained_at"]]), 3)
        row["step_time_ratio"] = round(row["step_seconds"] / whole, 3) if whole else None
    figures = {
        "device": machine(), "command": shlex.join(["python", "benchmarks/lora_pruning.py", *sys.argv[1:]]),
        "questions": len(asked), "steps": len(train), "rows": rows,
    }  # fmt: skip
    print(format_table(rows))
    if given.output is not None:
        write_text(given.output, dump_figures(figures))


def pick(split: str, lengths: list[int], count: int) -> list[tuple[Path, PocketItem]]:
    """So many questions of a split, spread over its scenes."""
    benchmark = PocketBenchmark.open(split)
    items = [item for item in benchmark.items if round(item.seconds) in lengths]
    chosen = items[:: max(len(items) // count, 1)][:count]
    if len(chosen) < count:
        chosen = [items[i % len(items)] for i in range(count)]
    return [(benchmark.folder / item.audio, item) for item in chosen]


def records(questions: list[tuple[Path, PocketItem]]) -> Any:
    """As the data module takes them."""
    from headrouter_pl.data import AudioPrompt

    return [AudioPrompt(path, item.prompt, item.answer, f"{i}/{item.key}") for i, (path, item) in enumerate(questions)]


def make(adapter: Path | None = None) -> LALMModule:
    """The trained pocket model with a new adapter of its decoder, or with one that was trained."""
    L.seed_everything(0, verbose=False)
    lora = None if adapter else LoraConfig(r=16, lora_alpha=32, target_modules=DECODER)
    return LALMModule(
        "pocket", lora=lora, adapter=str(adapter) if adapter else None, dtype="bfloat16", task="question",
        learning_rate=1e-4, lr_schedule="cosine", warmup_steps=5,
    )  # fmt: skip


def trainer(*callbacks: L.Callback, steps: int = -1) -> L.Trainer:
    """One epoch, on what there is."""
    return L.Trainer(
        accelerator="auto", devices=1, precision="bf16-mixed", logger=False, enable_checkpointing=False,
        enable_model_summary=False, max_epochs=1, max_steps=steps, num_sanity_val_steps=0, callbacks=list(callbacks),
        gradient_clip_val=1.0,
    )  # fmt: skip


def tune(
    ratio: float, train: list[tuple[Path, PocketItem]], asked: list[tuple[Path, PocketItem]], given: Any
) -> dict[str, Any]:
    """Fine-tunes at a ratio, unless that was done, and asks."""
    folder = given.folder / f"{ratio:g}"
    adapter = folder / "adapter"
    losses: list[float] = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    settings = {"steps": given.steps, "lengths": given.lengths, "layer": given.layer, "profile": given.profile}
    done = folder / "losses.json"
    if done.is_file() and (was := json.loads(done.read_text())["settings"]) != settings:
        raise SystemExit(f"{done} is of a run with {was}: remove it, or name another --folder.")
    if not done.is_file():
        module = make()
        pruner = (
            []
            if ratio == 1
            else [HeadRouterCallback(ratio, layer=given.layer, profile=given.profile, stages=("fit",), log=False)]
        )
        data = AudioPromptDataModule(module.processor, train=records(train))
        trainer(*pruner, Losses(), AdapterExport(str(adapter))).fit(module, data)
        write_text(done, json.dumps({"settings": settings, "losses": losses}))
    losses = json.loads(done.read_text())["losses"]
    row: dict[str, Any] = {"trained_at": ratio, "train_loss": round(statistics.mean(losses[len(losses) // 2 :]), 3)}
    module = make(adapter).eval()
    reader = AudioPromptDataModule(module.processor)
    right: dict[str, list[bool]] = {"unpruned": [], "pruned": []}
    nll: dict[str, list[float]] = {"unpruned": [], "pruned": []}
    pruner_ = AudioTokenPruner(
        ratio if ratio < 1 else 0.7, layer=given.layer, profile=given.profile, tokenizer=module.processor
    )
    for (_, item), record in zip(tqdm(asked, desc=f"asking, {ratio:g}"), records(asked), strict=True):
        inputs = reader.collate([record])["inputs"]
        labelled = module._to_model_dtype(reader.collate_train([record])["inputs"])
        for name, attached in (("unpruned", None), ("pruned", pruner_)):
            with torch.inference_mode(), torch.autocast(module.device.type, torch.bfloat16):
                if attached is None:
                    text, loss = module.answer(inputs)[0], module.model(**labelled).loss
                else:
                    with attached(module):
                        text, loss = module.answer(inputs)[0], module.model(**labelled).loss
            right[name].append(score_answer(item, text).right)
            nll[name].append(float(loss))
    row["asked_pruned_at"] = ratio if ratio < 1 else 0.7
    for name in ("unpruned", "pruned"):
        row[f"loss_{name}"] = round(statistics.mean(nll[name]), 3)
        row[f"right_{name}"] = round(statistics.mean(right[name]), 3)
    return row


def time_steps(
    questions: list[tuple[Path, PocketItem]], ratios: list[float], layer: int, profile: str
) -> dict[float, list[float]]:
    """Seconds of forward, backward and optimiser, encoder included, at each ratio in turn, without the first round."""
    module = make()
    module.train()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
    data = AudioPromptDataModule(module.processor)
    times: dict[float, list[float]] = {ratio: [] for ratio in ratios}
    cuda = torch.cuda.is_available()
    module.to("cuda" if cuda else "cpu")
    for number, record in enumerate(tqdm(records([questions[0], *questions]), desc="timing")):
        inputs = module._to_model_dtype(data.collate_train([record])["inputs"])
        inputs = {name: value.to(module.device) for name, value in inputs.items()}
        for ratio in ratios:
            pruner = AudioTokenPruner(ratio, layer=layer, profile=profile, tokenizer=module.processor)
            if cuda:
                torch.cuda.synchronize()
            started = time.perf_counter()
            with torch.autocast(module.device.type, torch.bfloat16):
                if ratio == 1:
                    loss = module._answer_forward(inputs).loss
                else:
                    with pruner(module):
                        loss = module._answer_forward(inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if cuda:
                torch.cuda.synchronize()
            if number:
                times[ratio].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
