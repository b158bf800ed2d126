"""``headrouter-pl gallery``: one page to see and hear what pruning methods kept of the Pocket benchmark's audio."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrouter_pl.cli.method_runner import MethodRunner, check_methods, read_methods, read_ratios
from headrouter_pl.cli.pocket import choose_items, load_model
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.results import check_output

if TYPE_CHECKING:
    from headrouter_pl.data.pocket.benchmark import PocketItem
    from headrouter_pl.models.answering import EncodedPrompt
    from headrouter_pl.pictures import GallerySample


def gallery(
    methods: list[dict[str, Any]],
    keep_ratios: list[float] = [0.7, 0.5, 0.3, 0.1],  # noqa: B006 (never changed; jsonargparse wants a list)
    weights: str = "shipped",
    checkpoint: str | None = None,
    split: str = "validation",
    lengths: list[int] | None = None,
    max_scenes: int | None = None,
    max_questions: int | None = 40,
    dtype: str = "bfloat16",
    title: str = "What the pocket model heard",
    output: str = "outputs/gallery.html",
) -> Path:
    """Writes a page that shows and plays what each method kept: open it in any browser, nothing else is needed.

    Questions of the Pocket benchmark are asked unpruned and with every method at every ratio. For other models and
    data, put the callback HeadRouterGallery into a validate, test or predict run.

    Args:
        methods: As for compare; of a method with several seeds, the first is shown.
        keep_ratios: Shares of the audio tokens to keep, below 1.
        weights: "shipped", "untrained", or a folder of exported weights.
        checkpoint: A Lightning checkpoint of the training, instead of weights.
        split: "validation" or "test".
        lengths: Seconds of the scenes to ask about; all by default.
        max_scenes: Scenes of each length, at most.
        max_questions: Questions, at most; lengths and tasks are mixed.
        dtype: Of the weights, as torch names it.
        title: Of the page.
        output: Where it goes.

    Returns:
        The page.
    """
    import torch
    from tqdm.auto import tqdm

    from headrouter_pl.cli.tables import machine
    from headrouter_pl.data.audio import read_audio
    from headrouter_pl.data.pocket.benchmark import PocketBenchmark
    from headrouter_pl.models.checkpoints import get_dtype
    from headrouter_pl.models.encoded import encoded_audio
    from headrouter_pl.pictures import Gallery

    chosen = [dataclasses.replace(m, seeds=m.seeds[:1]) if m.seeds else m for m in read_methods(methods)]
    ratios = read_ratios(keep_ratios)
    if not ratios:
        raise ConfigurationError(f"keep_ratios must name a share below 1, got {list(keep_ratios)}.")
    if max_questions is not None and max_questions < 1:
        raise ConfigurationError(f"max_questions must be at least 1, got {max_questions}.")
    check_methods(chosen)
    page = Gallery(title)  # refuses to start without what it needs to end
    weights_dtype = get_dtype(dtype)
    check_output(output)
    benchmark = PocketBenchmark.open(split)
    items = choose_items(benchmark.items, lengths, max_scenes)[:max_questions]
    model, processor = load_model(weights, checkpoint, weights_dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    runner = MethodRunner(model, processor, chosen, ratios, sorted({item.type for item in items}))
    runner.calibrate(items, benchmark.folder)
    page.note = f"{split} split of the Pocket benchmark, {len(items)} questions; {weights} weights, {machine()}"
    rate = processor.feature_extractor.sampling_rate
    with tqdm(total=len(items), desc="gallery", unit="question") as bar:
        for name, scene in groupby(items, key=lambda item: item.audio):
            audio = read_audio(benchmark.folder / name, rate)
            encoded = runner.prompter.encode(audio)
            with encoded_audio(model):
                for item in scene:
                    page.add(_show(runner, item, audio, rate, encoded))
                    bar.update()
    path = page.write(output)
    print(f"{path}: {len(page)} questions, {path.stat().st_size / 2**20:.1f} MiB")
    return path


def _show(runner: MethodRunner, item: PocketItem, audio: Any, rate: int, encoded: EncodedPrompt) -> GallerySample:
    """One question, asked in every way."""
    from headrouter_pl.data.pocket.scoring import score_answer
    from headrouter_pl.pictures import GallerySample, GalleryView, route_parts
    from headrouter_pl.scorers import HeadRouterScorer

    inputs = runner.prompter.inputs(encoded, item.prompt)
    unpruned, _ = runner.answer(inputs)
    views = []
    for run in runner.runs:
        text, _, sample = runner.answer_pruned(run, item, encoded, inputs)
        scorer = run.engine.scorer
        parts = route_parts(scorer.router, scorer.profile, sample) if isinstance(scorer, HeadRouterScorer) else None
        right = score_answer(item, text).right
        views.append(GalleryView(run.method.name, run.ratio, sample, text, right, parts))
    return GallerySample(
        item.key, audio, rate, item.prompt, unpruned, views, item.answer, score_answer(item, unpruned).right,
        f"{item.type}, {item.task}", item.evidence_seconds,
    )  # fmt: skip
