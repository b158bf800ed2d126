"""A data module over (audio, prompt, answer) records, for any processor with a chat template."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from headrouter_pl.data.audio import AudioError, check_audible
from headrouter_pl.data.bucketing import LengthBucketSampler, ResumableDataLoader
from headrouter_pl.data.chat import audio_extractor, encode_chats
from headrouter_pl.data.records import AudioPrompt, DatasetRecords, read_records
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.tasks import Task, get_task

if TYPE_CHECKING:
    from transformers import ProcessorMixin


Records = Sequence[AudioPrompt] | str | Path


class AudioPromptDataModule(L.LightningDataModule):
    """Batches of records, tokenized with the model's own processor and chat template.

    Validation, test and prediction batches end where the answer begins (left padding); training batches hold the answer
    too, with ``labels`` on it alone. Audio that is missing, unreadable or silent is an error: a missing file at once,
    the others when their turn comes. So is a training record without an answer. Audio that the processor cuts is warned
    of, with the seconds lost.

    Args:
        processor: The model's processor, the name or path of a checkpoint that has it, or ``"pocket"``.
        train: Records to fit on, here and below: a list, or the path of one (see :func:`read_records`).
        validate: Records for validation.
        test: Records for testing.
        predict: Records for prediction.
        task: Name of the task of records that name none.
        columns: What lists on disk call their fields, by our names for them (see :func:`read_records`).
        on_bad_audio: ``"report"`` lists samples whose audio cannot be used under ``failures`` of their batch, where
            they count as wrong, instead of stopping; not in training.
        allow_silence: Whether silence is audio like any other; it is usually what broken files hold.
        system_prompt: Said by the system before the question; the chat template's own if None.
        batch_size: Samples per batch.
        num_workers: Processes that load audio.
    """

    def __init__(
        self,
        processor: ProcessorMixin | str,
        *,
        train: Records = (),
        validate: Records = (),
        test: Records = (),
        predict: Records = (),
        task: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        on_bad_audio: Literal["error", "report"] = "error",
        allow_silence: bool = False,
        system_prompt: str | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if on_bad_audio not in ("error", "report"):
            raise ConfigurationError(f"on_bad_audio must be 'error' or 'report', got {on_bad_audio!r}.")
        self.processor = _load_processor(processor) if isinstance(processor, str) else processor
        self.records: dict[str, Records] = {"train": train, "validate": validate, "test": test, "predict": predict}
        self.task = None if task is None else get_task(task).name
        self.columns = columns
        self.on_bad_audio = on_bad_audio
        self.allow_silence = allow_silence
        self.system_prompt = system_prompt
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._left_out: Set[str] = frozenset()

    def train_dataloader(self) -> DataLoader[AudioPrompt]:
        """Training batches with labels, shuffled; a resumed run goes on with the first that it has not seen.

        Their order depends on the seed of Lightning's ``seed_everything`` (0 without one) and the epoch.
        """
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[AudioPrompt]:
        """Validation batches."""
        return self._loader("validate")

    def test_dataloader(self) -> DataLoader[AudioPrompt]:
        """Test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[AudioPrompt]:
        """Prediction batches."""
        return self._loader("predict")

    def read(self, stage: str) -> Sequence[AudioPrompt]:
        """The records of a stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``."""
        records = self.records[stage]
        if isinstance(records, (str, Path)):
            return read_records(records, columns=self.columns, task=self.task)
        if self.task is None or isinstance(records, DatasetRecords):
            return records
        return [record if record.task else self._of_task(record, get_task(self.task)) for record in records]

    @staticmethod
    def _of_task(record: AudioPrompt, task: Task) -> AudioPrompt:
        """The record as one of a list on disk would be read."""
        answer = record.answer
        if record.options and answer:
            try:
                answer = task.right_answer(answer, record.options)
            except ValueError as error:
                raise ConfigurationError(f"{(record.key or record.prompt)!r}: {error}.") from error
        return replace(record, task=task.name, answer=answer)

    def leave_out(self, keys: Collection[str]) -> None:
        """Leaves records of these keys out of prediction: they have been predicted before."""
        self._left_out = frozenset(keys)

    def _loader(self, stage: str) -> DataLoader[AudioPrompt]:
        records = self.read(stage)
        in_memory = not isinstance(records, DatasetRecords)  # others are checked batch by batch, but for their keys
        if stage == "train":
            if not len(records):
                raise ConfigurationError("There are no records to fit on: give train.")
            if in_memory:
                _check_answers(records)
        else:
            if not len(records) and self.trainer is not None and self.trainer.state.fn == stage:
                raise ConfigurationError(f"There are no records to {stage}: give {stage}.")
            keys = records.task_keys() if isinstance(records, DatasetRecords) else [(r.task, r.key) for r in records]
            _check_keys(keys, by_task=stage != "predict")
        if (stage == "train" or self.on_bad_audio == "error") and in_memory:
            _check_files(records)
        chosen: Any = records
        if stage == "predict" and self._left_out:
            chosen = Subset(chosen, [i for i, (_, key) in enumerate(keys) if key not in self._left_out])
            processes = 1 if self.trainer is None else self.trainer.world_size
            if 0 < len(chosen) < processes:
                raise ConfigurationError(
                    f"{len(chosen)} samples are left to predict, fewer than the {processes} processes: resume in one."
                )
        if stage == "train":
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # where Lightning's own distributed sampler reads it
            fixed = bool(getattr(self.trainer, "overfit_batches", 0))  # the same batches each epoch
            batches = LengthBucketSampler([1] * len(chosen), self.batch_size, step=1, seed=seed, shuffle=not fixed)
            return ResumableDataLoader(
                chosen, batch_sampler=batches, num_workers=self.num_workers, collate_fn=self.collate_train
            )
        return DataLoader(chosen, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=self.collate)

    def collate(self, records: Sequence[AudioPrompt]) -> dict[str, Any]:
        """A batch to generate from.

        Returns:
            ``inputs``; and for each sample ``answers``, ``keys``, ``task_names``, ``options`` and ``cut_seconds`` (of
            audio that the processor cut off). ``failures``: a mapping for each sample whose audio cannot be used, which
            is in none of these, with ``key``, ``task``, ``answer``, ``options`` and ``error``.
        """
        usable, clips, failures = [], [], []
        for record in records:
            try:
                parts = self._clips(record)
            except AudioError as error:
                if self.on_bad_audio == "error":
                    raise
                failures.append(
                    {"key": record.key, "task": record.task, "answer": record.answer, "options": list(record.options),
                     "error": str(error)}
                )  # fmt: skip
                continue
            usable.append(record)
            clips.append(parts)
        batch = self._batch(usable, clips)
        return {
            **batch,
            "task_names": [record.task for record in usable],
            "options": [list(record.options) for record in usable],
            "failures": failures,
        }

    def collate_train(self, records: Sequence[AudioPrompt]) -> dict[str, Any]:
        """A batch to train on: like :meth:`collate`, with the answers in the text and ``inputs["labels"]``.

        Raises:
            AudioError: If a record has no answer, or its audio cannot be used.
        """
        _check_answers(records)
        return self._batch(records, [self._clips(record) for record in records], answered=True)

    @property
    def sampling_rate(self) -> int:
        """Hz, of the audio that the processor takes."""
        return audio_extractor(self.processor).sampling_rate

    def _clips(self, record: AudioPrompt) -> list[np.ndarray]:
        clips = record.clips(self.sampling_rate)
        if not self.allow_silence:
            for given, samples in zip(record.parts(), clips, strict=True):
                path = given if isinstance(given, (str, Path)) else getattr(given, "name", None)
                check_audible(samples, path or record.key or record.prompt)
        return clips

    def _batch(
        self, records: Sequence[AudioPrompt], clips: Sequence[Sequence[np.ndarray]], *, answered: bool = False
    ) -> dict[str, Any]:
        batch: dict[str, Any] = {
            "inputs": {},
            "answers": [record.answer for record in records],
            "keys": [record.key for record in records],
            "cut_seconds": [],
        }
        if records:
            try:
                batch["inputs"] = encode_chats(
                    self.processor, records, clips, answered=answered, system_prompt=self.system_prompt
                )
            except ValueError as error:
                several = [(record, parts) for record, parts in zip(records, clips, strict=True) if len(parts) > 1]
                if not several:
                    raise
                ((record, parts), *_) = several
                name = type(self.processor).__name__
                raise AudioError(
                    f"{(record.key or record.prompt)!r} asks about {len(parts)} recordings, and {name} refuses this "
                    f"batch: {error} If it takes one recording a question, leave such questions out."
                ) from error
            batch["cut_seconds"] = self._cut(records, clips, batch["inputs"])
        return batch

    def _cut(
        self, records: Sequence[AudioPrompt], clips: Sequence[Sequence[np.ndarray]], inputs: Mapping[str, Tensor]
    ) -> list[float]:
        """Seconds of each sample that the processor cut off; warns of each that lost some."""
        taken, why = self._taken(sum(map(len, clips)), inputs)
        limits = iter(taken)
        lost = []
        for record, parts in zip(records, clips, strict=True):
            seconds = [len(part) / self.sampling_rate for part in parts]
            over = [was - limit for was, limit in zip(seconds, limits, strict=False)]  # takes as many as there are
            each = [more if more > _EDGE else 0.0 for more in over]
            lost.append(sum(each))
            if lost[-1]:
                rank_zero_warn(
                    f"{record.key or record.prompt!r}: {max(seconds):.1f} s of audio, of which the processor cuts the "
                    f"last {max(each):.1f} s ({why})."
                )
        return lost

    def _taken(self, count: int, inputs: Mapping[str, Tensor]) -> tuple[list[float], str]:
        """Seconds that the model gets at most of each of ``count`` recordings, and how that is known."""
        limit = getattr(self.processor, "max_audio_len", None)
        if limit:
            return [limit] * count, f"processor.max_audio_len is {limit} s"
        hop = getattr(audio_extractor(self.processor), "hop_length", None)
        mask = next((inputs[name] for name in _MASKS if name in inputs), None)
        if hop and mask is not None and mask.ndim == 2 and len(mask) == count:  # a row a recording
            # A row that is full may have been cut there; one that is not shows the end of the audio.
            seconds = mask.sum(1).double() * hop / self.sampling_rate
            return seconds.masked_fill(
                ~mask.bool().all(1), float("inf")
            ).tolist(), "its feature extractor takes no more"
        return [float("inf")] * count, ""


_EDGE = 0.1
"""Seconds at the end of audio in which a mel frame more or less says nothing."""
_MASKS = ("feature_attention_mask", "input_features_mask", "audio_attention_mask")
"""What processors call the mask ``[recordings, frames]`` of mel frames that hold audio."""


def _load_processor(name: str) -> ProcessorMixin:
    if name == "pocket":
        from headrouter_pl.models.pocket import load_processor

        return load_processor()
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(name)


def _check_answers(records: Sequence[AudioPrompt]) -> None:
    if without := next((record for record in records if not record.answer.strip()), None):
        raise AudioError(
            f"{(without.key or without.prompt)!r} has no answer to train on (a field 'answer', or what columns says is "
            "called so): set columns, or give answers."
        )


def _check_keys(keys: Iterable[tuple[str, str]], *, by_task: bool) -> None:
    """Refuses keys that stand for several records: of a task, as scores tell them, or of all, as predictions do."""
    counts = Counter((task if by_task else "", key) for task, key in keys if key)
    twice = [key for (_, key), count in counts.items() if count > 1]
    if twice:
        raise AudioError(f"{len(twice)} keys stand for several records, {twice[0]!r} among them; give each its own.")


def _check_files(records: Sequence[AudioPrompt]) -> None:
    paths = dict.fromkeys(Path(part) for record in records for part in record.parts() if isinstance(part, (str, Path)))
    if missing := [str(path) for path in paths if not path.is_file()]:
        more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise AudioError(
            f"no audio file at {', '.join(missing[:5])}{more} ({len(missing)} of {len(paths)} files). "
            "on_bad_audio='report' counts them as wrong instead."
        )
