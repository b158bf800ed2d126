"""Training data of the pocket model: questions about parts of encoded windows, from short to long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from torch.utils.data import Dataset

from headrouter_pl.alignment import Utterance
from headrouter_pl.data.bucketing import LengthBucketSampler, ResumableBatchSampler, ResumableDataLoader
from headrouter_pl.data.packing import PackedCollator, PackedSample
from headrouter_pl.data.pocket.compositions import Part, WindowPool
from headrouter_pl.data.pocket.descriptions import DESCRIBE, describe
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.pools import Pools
from headrouter_pl.data.pocket.questions import Question, Vocabulary, ask
from headrouter_pl.data.pocket.scenes import Scene
from headrouter_pl.data.pocket.windows import (
    EncodedWindows,
    draw_phrase_window,
    draw_sentence_window,
    draw_sparse_window,
    draw_varied_window,
    draw_window,
    heard_in,
)
from headrouter_pl.digest import digest
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models.checkpoints import encoder_digest

if TYPE_CHECKING:
    from transformers import ProcessorMixin

__all__ = ["PocketDataModule", "Stage"]


@dataclass
class Stage:
    """A stretch of the curriculum.

    Attributes:
        samples: Number of audios.
        events: Fewest and most recordings in an audio, each cut closely from any window; ignored with ``windows``.
        windows: Whole windows in an audio, at most; 0 for parts of windows.
        seconds: Shortest and longest audio, with the recordings at random places in quiet speech and noise; ``pauses``
            and ``windows`` are ignored with it.
        heard: With ``seconds``, share of the quiet that is in the audio; the positions of the rest are skipped.
        questions: Questions asked of an audio, at most.
        choices: Share of questions that name options.
        described: Share of audios that are also to be described, see :func:`describe`.
        pauses: Share of recordings that up to two seconds without any come before; ignored with ``windows``.
    """

    samples: int
    events: tuple[int, int] = (1, 3)
    windows: int = 0
    seconds: tuple[float, float] | None = None
    heard: float = 1.0
    questions: int = 6
    choices: float = 0.5
    described: float = 0.0
    pauses: float = 0.0


@dataclass(frozen=True)
class _Plan:
    """An audio: parts of windows, the frame at which each begins, and what is asked."""

    parts: tuple[Part, ...]
    places: tuple[int, ...]
    questions: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...]


class _Planned(Dataset[PackedSample]):
    def __init__(self, plans: Sequence[_Plan], windows: WindowPool, noise: float = 0.0) -> None:
        self.plans = plans
        self.windows = windows
        self.noise = noise

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> PackedSample:
        plan = self.plans[index]
        features = np.concatenate([self.windows[window][first:last] for window, first, last in plan.parts])
        if self.noise:
            drawn = np.random.default_rng(index).standard_normal(features.shape, dtype=np.float32)
            spread = features.astype(np.float32).std(0)
            features = (features + self.noise * spread * drawn).astype(np.float16)
        positions = np.concatenate([
            np.arange(place, place + last - first)
            for place, (_, first, last) in zip(plan.places, plan.parts, strict=True)
        ])  # fmt: skip
        return PackedSample(features, plan.questions, str(index), plan.tasks, positions)


_UNEVEN = 1.3  # an answer may be right this many times as often as its task's mean answer
_CONSTANT = 20  # a task is asked no more after so many questions that all had one answer
_SELDOM = {"gender": 0.5, "voice_count": 0.4, "same_speaker": 0.6}  # probability that a task of few answers is asked


class CurriculumSampler(ResumableBatchSampler):
    """Bucketed batches of one stage after another, as one epoch."""

    def __init__(
        self, lengths: Sequence[Sequence[int]], max_tokens: int, *, seed: int = 0, sampler: Any = None
    ) -> None:
        super().__init__()
        self.stages = [LengthBucketSampler(stage, max_tokens, seed=seed + i) for i, stage in enumerate(lengths)]
        self.offsets = np.cumsum([0, *(len(stage) for stage in lengths)]).tolist()
        self.plan = digest([stage.plan for stage in self.stages])

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of every stage."""
        super().set_epoch(epoch)
        for stage in self.stages:
            stage.set_epoch(epoch)

    def __len__(self) -> int:
        return sum(len(stage) for stage in self.stages)

    def _batches(self) -> Iterator[list[int]]:
        for stage, offset in zip(self.stages, self.offsets, strict=False):
            for batch in stage:
                yield [offset + index for index in batch]


class PocketDataModule(L.LightningDataModule):
    """Packed training batches out of encoded windows.

    The first use decodes the installed packages' recordings and encodes the windows (about half a second each on two
    cores); both are cached.

    Args:
        stages: The curriculum; one epoch is all of it, one stage after another, or several at once where a list stands
            for a stage.
        windows: Number of encoded windows to train on, with clips one closely after another.
        varied_windows: Further ones with clips played faster or slower.
        sparse_windows: Further ones with few clips, for whole windows only.
        phrase_windows: Further ones with phrases that synthetic voices say.
        sentence_windows: Further ones with sentences to transcribe.
        validation_windows: Number to validate on, of clips held out.
        max_tokens: Tokens in a batch, padding included.
        noise: Of the training audios' encoder outputs, in standard deviations of each channel.
        encoder: Folder of an adapter of the encoder, in peft's format, to encode with; see
            :class:`headrouter_pl.alignment_module.AlignmentModule`.
        seed: Of windows, questions and order.
        cache: :func:`headrouter_pl.wheels.cache_root` if None.
    """

    def __init__(
        self,
        stages: list[Stage | list[Stage]],
        windows: int = 1400,
        varied_windows: int = 1200,
        sparse_windows: int = 300,
        phrase_windows: int = 150,
        sentence_windows: int = 500,
        validation_windows: int = 100,
        max_tokens: int = 1100,
        noise: float = 0.0,
        encoder: str | None = None,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.counts: dict[str, dict[Callable[[np.random.Generator, Pools], Scene], int]] = {
            "train": {
                draw_window: windows,
                draw_varied_window: varied_windows,
                draw_sparse_window: sparse_windows,
                draw_phrase_window: phrase_windows,
                draw_sentence_window: sentence_windows,
            },
            "validation": {draw_window: validation_windows},
        }
        self.max_tokens = max_tokens
        self.noise = noise
        self.encoder = encoder
        self.seed = seed
        self.cache = None if cache is None else Path(cache)

    def prepare_data(self) -> None:
        """Decodes clips and encodes windows that are not cached."""
        from headrouter_pl.models.checkpoints import load_adapter, merge_adapter
        from headrouter_pl.models.pocket import load_pocket

        library = ClipLibrary.open(cache=self.cache)
        model: Any = None
        for split in self.counts:
            for windows in self.encoded_windows(library, split):
                if windows.missing():
                    if model is None:
                        model, processor = load_pocket(self.cache)
                        if self.encoder is not None:
                            model = merge_adapter(load_adapter(model, self.encoder))
                    windows.encode(model, processor)

    def setup(self, stage: str) -> None:
        """Opens what is cached.

        Raises:
            HeadRouterError: If the model that is to be trained has another adapter of its encoder than :attr:`encoder`.
        """
        from headrouter_pl.models.pocket import load_processor

        module: Any = None if self.trainer is None else self.trainer.lightning_module
        theirs = module.encoder_digest() if hasattr(module, "encoder_digest") else None  # of a LALMModule
        if theirs is not None and theirs != self._encoder_digest():
            raise HeadRouterError(
                f"The recordings are encoded with {self.encoder or 'the encoder as it comes'}, and the model has "
                f"{'another adapter of its encoder' if theirs else 'no adapter of its encoder'}: give the data's "
                "'encoder' and the model's 'adapter' one folder."
            )
        self.library = ClipLibrary.open(cache=self.cache, progress=False)
        self.processor: ProcessorMixin = load_processor(self.cache)
        self.collate = PackedCollator(self.processor)

    def encoded_windows(self, library: ClipLibrary, split: str) -> list[EncodedWindows]:
        """The windows of a split, a sequence a kind; what is not cached yet is missing from them."""
        pools = Pools.of(library, split)
        encoder = self._encoder_digest()
        return [
            EncodedWindows(pools, count, self.seed, self.cache, draw, encoder)
            for draw, count in self.counts[split].items()
        ]

    def _encoder_digest(self) -> str:
        return "" if self.encoder is None else encoder_digest(self.encoder)

    def _windows(self, split: str) -> WindowPool:
        return WindowPool(self.encoded_windows(self.library, split))

    def train_dataloader(self) -> ResumableDataLoader:
        """The curriculum."""
        windows = self._windows("train")
        plans = []
        for number, stage in enumerate(self.stages):
            kinds = stage if isinstance(stage, list) else [stage]
            drawn = [self._plan(windows, kind, [self.seed, number, i]) for i, kind in enumerate(kinds)]
            plans.append([plan for part in drawn for plan in part])
        lengths = [[self._length(plan) for plan in part] for part in plans]
        sampler = CurriculumSampler(lengths, self.max_tokens, seed=self.seed)
        dataset = _Planned([plan for part in plans for plan in part], windows, self.noise)
        return ResumableDataLoader(dataset, batch_sampler=sampler, collate_fn=self.collate)

    def val_dataloader(self) -> ResumableDataLoader:
        """Audios of one to four recordings, of clips held out."""
        windows = self._windows("validation")
        plans = self._plan(windows, Stage(4 * len(windows), (1, 4)), [self.seed, 1 << 20])
        # Shuffled, lest a limited number of batches be the longest.
        sampler = LengthBucketSampler([self._length(plan) for plan in plans], self.max_tokens, seed=self.seed)
        return ResumableDataLoader(_Planned(plans, windows), batch_sampler=sampler, collate_fn=self.collate)

    def utterances(self) -> list[Utterance]:
        """Every recording in the training windows with what is known of it, for aligning the projector."""
        windows = self._windows("train")
        found = []
        for scene, features in zip(windows.scenes, windows, strict=True):
            for first, last, text, labels in heard_in(scene, self.library):
                found.append(Utterance(np.asarray(features[first:last]), text, labels))
        return found

    def _length(self, plan: _Plan) -> int:
        return self.collate.length(sum(last - first for _, first, last in plan.parts), plan.questions)

    def _plan(self, windows: WindowPool, stage: Stage, seed: list[int]) -> list[_Plan]:
        rng = np.random.default_rng(seed)
        vocabulary = Vocabulary(self.library).with_lines(windows.pools.of_role("room"))
        used: Counter[tuple[str, str]] = Counter()
        plans: list[_Plan] = []
        while len(plans) < stage.samples:
            parts, places = _draw_parts(windows, stage, rng)
            scene = windows.scene(parts)
            asked = _choose(ask(scene, vocabulary, rng, choices=stage.choices), stage.questions, rng, used)
            questions = [(question.prompt, question.answer) for question in asked]
            tasks = [question.task for question in asked]
            if rng.random() < stage.described and (answer := describe(scene, self.library)):
                questions.append((DESCRIBE, answer))
                tasks.append("description")
            if questions:
                plans.append(_Plan(tuple(parts), tuple(places), tuple(questions), tuple(tasks)))
        return plans


def _draw_parts(windows: WindowPool, stage: Stage, rng: np.random.Generator) -> tuple[list[Part], list[int]]:
    """Parts of an audio of a stage, and the frame at which each begins."""
    if stage.windows and stage.seconds is None:
        parts = windows.whole(rng, stage.windows)
    else:
        count = int(rng.integers(stage.events[0], stage.events[1] + 1))
        if stage.seconds is not None:
            return windows.spread(rng, count, float(rng.uniform(*stage.seconds)), stage.heard)
        parts = windows.composed(rng, count, stage.pauses)
    return parts, [0, *np.cumsum([last - first for _, first, last in parts])[:-1].tolist()]


def _choose(
    asked: Sequence[Question], count: int, rng: np.random.Generator, used: Counter[tuple[str, str]]
) -> list[Question]:
    """So many of the questions, in turn from each task, so that the frequent ones do not crowd out the others.

    Of a task's questions, first the one whose answer was right least often so far, and none whose answer was right much
    more often than others: else the model learns which language is the usual one, and not to listen. Tasks with two or
    three answers are asked less.

    Args:
        asked: All questions of an audio.
        count: How many to choose, at most.
        rng: Source of the choices.
        used: Task and answer -> how often it was right so far; brought up to date.
    """
    times: dict[str, list[int]] = {}
    for (task, _), number in used.items():
        times.setdefault(task, []).append(number)
    by_task: dict[str, list[Question]] = {}
    for i in rng.permutation(len(asked)):
        task = asked[i].task
        if rng.random() >= _SELDOM.get(task, 1.0) or (len(times.get(task, ())) == 1 and times[task][0] >= _CONSTANT):
            continue
        if used[task, asked[i].answer] <= _UNEVEN * np.mean(times.get(task, [0])) + 2:
            by_task.setdefault(task, []).append(asked[i])
    count = min(count, sum(map(len, by_task.values())))
    chosen: list[Question] = []
    while len(chosen) < count:
        for task in rng.permutation(sorted(by_task)):
            if by_task[task] and len(chosen) < count:
                rarest = min(by_task[task], key=lambda question: used[question.task, question.answer])
                by_task[task].remove(rarest)
                used[rarest.task, rarest.answer] += 1
                chosen.append(rarest)
    return chosen
