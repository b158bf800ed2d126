"""Writes a page to see and hear what was kept of the first samples of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from headrouter_pl.callbacks._common import StageCallback, find_tokenizer, is_sharded
from headrouter_pl.callbacks.head_router import find_pruners
from headrouter_pl.data.chat import audio_extractor
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.models import find_lalm
from headrouter_pl.pictures import Gallery, GallerySample, GalleryView, route_parts
from headrouter_pl.pruning import AudioTokenPruner
from headrouter_pl.pruning.report import PruningReport, SampleReport
from headrouter_pl.results import check_output
from headrouter_pl.scorers import HeadRouterScorer, Scorer
from headrouter_pl.tasks.scoring import batch_tasks, score_batch

__all__ = ["HeadRouterGallery"]

THIS_RUN = "this run"
"""What the page calls what a HeadRouterCallback of the same run did."""


class HeadRouterGallery(StageCallback):
    """Writes one HTML file that shows and plays what was kept of the first samples: no network, no server.

    Example::

        trainer = L.Trainer(callbacks=[HeadRouterCallback(keep_ratio=0.3), HeadRouterGallery("gallery.html")])
        trainer.validate(module, datamodule=data)

    The samples are asked again, unpruned and under each scorer at each ratio, so the page costs as many generations
    for each of them; what a :class:`HeadRouterCallback` of the run did is shown as "this run". The run itself goes on
    as it would without the page. Process zero alone asks and writes.

    For modules with an ``answer`` method like :class:`headrouter_pl.LALMModule`'s, over batches of
    :class:`headrouter_pl.data.AudioPromptDataModule` whose records have keys; or over batches of any data module that
    also hold ``audio`` (for each sample its waveform, float ``[n]`` at the processor's rate, or several) and
    ``prompts``. Batches may hold ``evidence``: for each sample a list of ``(start, end)`` in audio tokens, end
    exclusive. Time is laid evenly over a sample's audio tokens; several recordings are shown one after the other.

    Args:
        path: The file to write.
        samples: How many samples to show, at most.
        keep_ratios: Shares of the audio tokens to keep.
        scorers: Names of :data:`headrouter_pl.scorers.SCORERS`, or scorers.
        layer: The prune layer K; None for the pruner's default.
        title: Of the page.

    Attributes:
        page: Where the last run's page is; None before.

    Raises:
        ConfigurationError: If a value is out of range, or batches or module are not such as are needed.
    """

    def __init__(
        self,
        path: str | Path = "outputs/gallery.html",
        *,
        samples: int = 24,
        keep_ratios: Sequence[float] = (0.7, 0.5, 0.3),
        scorers: Sequence[str | Scorer] = ("headrouter",),
        layer: int | None = None,
        title: str = "What was kept",
    ) -> None:
        if samples < 1:
            raise ConfigurationError(f"samples must be at least 1, got {samples}.")
        self.path = Path(path)
        self.samples = samples
        self.title = title
        self.page: Path | None = None
        names = [name if isinstance(name, str) else type(name).__name__ for name in scorers]
        if len(set(names)) < len(names) or len(set(keep_ratios)) < len(keep_ratios):
            raise ConfigurationError(f"scorers and keep_ratios must differ, got {names} and {list(keep_ratios)}.")
        self._pruners = [
            (name, ratio, AudioTokenPruner(ratio, layer=layer, scorer=scorer))
            for name, scorer in zip(names, scorers, strict=True)
            for ratio in keep_ratios
        ]
        self._gallery: Gallery | None = None
        self._records: Iterator[Any] | None = None
        self._known: dict[tuple[str, str], Any] = {}

    @override
    def _on_epoch_start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._gallery = None
        if trainer.sanity_checking:
            return
        # On all processes: if one alone raised, the others would wait for it.
        if is_sharded(trainer):
            raise ConfigurationError(
                f"HeadRouterGallery asks in process zero alone, which {type(trainer.strategy).__name__} cannot do: the "
                "model is spread over processes. Run it in one process."
            )
        if not hasattr(module, "answer"):
            raise ConfigurationError(
                f"HeadRouterGallery needs a module with answer(inputs), as LALMModule has; {type(module).__name__} has "
                "none."
            )
        check_output(self.path)
        gallery = Gallery(self.title, f"{type(module).__name__}, {stage}")
        if not trainer.is_global_zero:
            return
        data: Any = getattr(trainer, "datamodule", None)
        self._records = iter(data.read(stage)) if hasattr(data, "read") else None
        self._known = {}
        self._gallery = gallery

    @override
    def _on_batch_end(self, trainer: Trainer, module: Any, stage: str, outputs: Any, batch: Any) -> None:
        if stage == "fit" or self._gallery is None or len(self._gallery) >= self.samples:
            return
        if not isinstance(batch, Mapping) or not {"inputs", "keys", "answers"} <= set(batch):
            given = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ConfigurationError(
                f"HeadRouterGallery needs batches with 'inputs', 'keys' and 'answers', as AudioPromptDataModule makes "
                f"them; got {given}."
            )
        if not batch["keys"]:
            return  # no sample has audio that can be used
        pruned = find_pruners(trainer, stage)
        views: list[list[GalleryView]] = [[] for _ in batch["keys"]]
        for number, callback in enumerate(pruned):
            name = THIS_RUN if len(pruned) == 1 else f"{THIS_RUN}, {number + 1}"
            profile, scorer = callback.report.profile, callback.pruner.scorer
            ratio = callback.pruner.keep_ratio
            firsts = _first_reports(callback.report, len(views))
            if firsts and (texts := _texts(outputs)) is not None:
                self._show(views, name, ratio, firsts, texts, self._right(module, batch, texts), scorer, profile)
        with ExitStack() as stack:
            stack.enter_context(isolate_rng())
            stack.enter_context(trainer.precision_plugin.forward_context())
            for callback in pruned:
                stack.enter_context(callback.paused(trainer, module))
            unpruned = self._ask(module, batch)
            for name, ratio, pruner in self._pruners:
                pruner.tokenizer = find_tokenizer(module, getattr(trainer, "datamodule", None))
                engine = pruner.engine(module)
                with engine:
                    texts = self._ask(module, batch)
                if firsts := _first_reports(engine.report, len(views)):
                    right = self._right(module, batch, texts)
                    self._show(views, name, ratio, firsts, texts, right, engine.scorer, engine.report.profile)
        rights = self._right(module, batch, unpruned)
        kinds = batch.get("types") or batch.get("task_names") or [""] * len(views)
        evidence = batch.get("evidence") or [()] * len(views)
        for row in range(min(len(views), self.samples - len(self._gallery))):
            if not views[row]:
                continue  # a sample without audio tokens
            audio, rate, question = self._heard(trainer, module, batch, row)
            token = len(audio) / rate / views[row][0].report.seen
            self._gallery.add(
                GallerySample(
                    batch["keys"][row] or f"sample {len(self._gallery)}", audio, rate, question, unpruned[row],
                    views[row], batch["answers"][row], rights[row], kinds[row],
                    [(start * token, end * token) for start, end in evidence[row]],
                )
            )  # fmt: skip

    @staticmethod
    def _show(
        views: list[list[GalleryView]], name: str, ratio: float | None, samples: Sequence[SampleReport],
        texts: Sequence[str], right: Sequence[bool | None], scorer: Scorer, profile: Any,
    ) -> None:  # fmt: skip
        for row, (sample, text, ok) in enumerate(zip(samples, texts, right, strict=True)):
            if sample.seen:
                routed = isinstance(scorer, HeadRouterScorer) and profile is not None
                parts = route_parts(scorer.router, profile, sample) if routed else None  # type: ignore[attr-defined]
                asked = sample.keep_ratio if ratio is None else ratio
                views[row].append(GalleryView(name, asked, sample, text, ok, parts))

    @staticmethod
    def _ask(module: Any, batch: Mapping[str, Any]) -> list[str]:
        task = getattr(module, "task", None)
        limits = None if task is None else [each.max_new_tokens for each in batch_tasks(batch, task)]
        return [text.strip() for text in module.answer(batch["inputs"], limits)]

    @staticmethod
    def _right(module: Any, batch: Mapping[str, Any], texts: Sequence[str]) -> list[bool | None]:
        """Whether each answer has full marks; None where no right answer or no task is known."""
        task = getattr(module, "task", None)
        if task is None:
            return [None] * len(texts)
        rows = score_batch({**batch, "failures": ()}, texts, task)
        return [row["score"] >= 100 if answer else None for row, answer in zip(rows, batch["answers"], strict=True)]

    def _heard(self, trainer: Trainer, module: Any, batch: Mapping[str, Any], row: int) -> tuple[np.ndarray, int, str]:
        """Waveform, sampling rate and question of a sample."""
        data: Any = getattr(trainer, "datamodule", None)
        owner = module if hasattr(module, "processor") else data
        rate = audio_extractor(owner.processor).sampling_rate
        if "audio" in batch and "prompts" in batch:
            given = batch["audio"][row]
            clips = [given] if not isinstance(given, (list, tuple)) else list(given)
            question = batch["prompts"][row]
        else:
            record = self._record((batch.get("task_names") or [""] * (row + 1))[row], batch["keys"][row])
            clips, question = record.clips(rate), record.prompt
        heard = [np.asarray(clip, dtype=np.float32) for clip in clips]
        cut = round((batch.get("cut_seconds") or [0.0] * (row + 1))[row] * rate)
        heard[-1] = heard[-1][: len(heard[-1]) - cut]
        if window := find_lalm(module).family.window:  # its silence has tokens too, which stand behind those of sound
            heard = [np.pad(clip, (0, -len(clip) % round(window * rate))) for clip in heard]
        return np.concatenate(heard), rate, question

    def _record(self, task: str, key: str) -> Any:
        while (task, key) not in self._known:
            record = None if self._records is None or not key else next(self._records, None)
            if record is None:
                raise ConfigurationError(
                    f"HeadRouterGallery finds no recording for the sample {key!r}: it looks for its key among the "
                    "records of the data module (read(stage)). Give every record a key of its own, or put 'audio' and "
                    "'prompts' into the batches."
                )
            self._known[record.task, record.key] = record
        return self._known.pop((task, key))

    @override
    def _on_epoch_end(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._finish()

    def _finish(self) -> None:
        gallery, self._gallery = self._gallery, None
        self._records, self._known = None, {}
        if gallery is None:
            return
        if not len(gallery):
            rank_zero_warn("HeadRouterGallery saw no audio tokens, and wrote no page.")
            return
        self.page = gallery.write(self.path)
        rank_zero_info(f"HeadRouterGallery: {self.page}, {len(gallery)} samples.")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._gallery:  # what is there already may show what went wrong
            try:
                self._finish()
            except Exception as error:  # would stand in the way of the first one, and of callbacks that clean up
                rank_zero_warn(f"HeadRouterGallery could not write {self.path}: {error}")


def _first_reports(report: PruningReport, rows: int) -> list[SampleReport]:
    """A report for each sample of a batch; none where no audio was seen, or whose is whose cannot be told."""
    first = report.prefills[0].samples if report.prefills else []
    samples = first if len(first) >= rows else report.samples  # without a cache each step is a prefill of all
    # Beams and returned sequences: the rows of a sample stand together, and are alike.
    return samples[:: len(samples) // rows] if samples and len(samples) % rows == 0 else []


def _texts(outputs: Any) -> list[str] | None:
    """What the step said, of LALMModule's steps."""
    if isinstance(outputs, Mapping) and "texts" in outputs:
        return list(outputs["texts"])
    if isinstance(outputs, Sequence) and all(isinstance(row, Mapping) and "text" in row for row in outputs):
        return [row["text"] for row in outputs if "failure" not in row]
    return None
