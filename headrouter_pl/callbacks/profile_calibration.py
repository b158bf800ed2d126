"""Fits a head-weight profile while a Lightning Trainer validates, tests or predicts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from headrouter_pl.calibration import ProfileCalibrator, append_answers, check_settings
from headrouter_pl.calibration.batches import sample_keys
from headrouter_pl.calibration.calibrator import SAVE_SECONDS
from headrouter_pl.callbacks._common import StageCallback, find_tokenizer, is_sharded, sum_over_processes
from headrouter_pl.callbacks.head_router import find_pruners
from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.functional import Queries
from headrouter_pl.profiles import TYPES, HeadProfile
from headrouter_pl.results import check_output
from headrouter_pl.task_types import type_among
from headrouter_pl.tasks import get_task


class ProfileCalibration(StageCallback):
    """Measures each batch of a run before its step, and writes the profile at the end.

    Example::

        trainer = L.Trainer(callbacks=[ProfileCalibration("mine.safetensors", method="evidence")])
        trainer.validate(module, datamodule=data)

    Batches have ``inputs`` and ``types``, and ``evidence`` for that method, see
    :class:`headrouter_pl.calibration.ProfileCalibrator`. Where there are no ``types``, as in batches of
    :class:`headrouter_pl.data.AudioPromptDataModule`, they are those of the tasks in ``task_names``, or their families
    where ``types`` below names these. For ``"utility"``, prompts in ``inputs`` without labels go on with the batch's
    ``answers``, a text for each sample. The module's own steps run as ever.

    Sums are taken over all processes, so that each has the same profile; of a sample that a distributed sampler repeats
    to fill the last batch, twice. During ``fit`` nothing is measured.

    Args:
        path: The file to write.
        method: See :class:`headrouter_pl.calibration.ProfileCalibrator`, here and below.
        fit: How weights are fitted.
        layer: The prune layer K.
        layers: The probed layers.
        types: Names of the types, each with its family.
        queries: Whose attention is measured.
        rotary: Whether it is attention after the rotary embedding.
        pool: Audio tokens a group of a scout pass to measure it in; None for the model's own pass.
        smoothing: Neighbours on each side that scores are to be averaged over.
        stretch: Audio tokens of a stretch, at most.
        ridge: Regularisation.
        name: What to call the profile; the name of the file if None.
        data: What it is measured on, for its metadata.
        state: Where to keep what was measured so far, in a file for each process, ``STATE.RANK``, until the profile is
            saved. A run that was stopped then measures no batch twice when it is started again with the same weights
            and the same batches in the same order; the module's own steps do run again. A file of another stage,
            number of processes or ``data`` is refused.

    Attributes:
        profile: The profile of the last run.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        method: str = "selectivity",
        fit: str | None = None,
        layer: int | None = None,
        layers: Sequence[int] | None = None,
        types: Mapping[str, str] = TYPES,
        queries: Queries = "prompt",
        rotary: bool = False,
        pool: int | None = None,
        smoothing: int = 0,
        stretch: int = 25,
        ridge: float = 1e-2,
        name: str | None = None,
        data: str = "",
        state: str | Path | None = None,
    ) -> None:
        check_settings(method, fit, types, stretch, ridge, smoothing)
        self.path = Path(path)
        self.settings: dict[str, Any] = {
            "method": method, "fit": fit, "layer": layer, "layers": layers, "types": types, "queries": queries,
            "rotary": rotary, "pool": pool, "smoothing": smoothing, "stretch": stretch, "ridge": ridge,
        }  # fmt: skip
        self.name = self.path.stem if name is None else name
        self.data = data
        self.profile: HeadProfile | None = None
        self.state = state
        self._calibrator: ProfileCalibrator | None = None
        self._kept: Path | None = None  # this process's file of the state
        self._share = ""  # whose batches are in it
        self._done = self._met = 0  # batches in it when the run began, and batches of the run dealt with so far
        self._saved = 0.0

    @override
    def _on_stage_start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit":
            rank_zero_warn(
                "ProfileCalibration measures nothing in fit, validation included, and writes no profile: head weights "
                "are of a model that stays as it is. Run validate, test or predict with it."
            )
        if trainer.state.fn != TrainerFn.FITTING:
            if is_sharded(trainer):
                raise ConfigurationError(
                    "ProfileCalibration runs parts of the model, and more or fewer of them for each batch: under "
                    f"{type(trainer.strategy).__name__} the processes, which hold a part of the weights each, would "
                    "wait for each other. Run it with DDP, or in one process."
                )
            if find_pruners(trainer, stage):
                raise ConfigurationError(
                    f"ProfileCalibration measures the whole model, and a HeadRouterCallback prunes {stage}. Calibrate "
                    "in a run of its own."
                )
            check_output(self.path)  # on all processes: if one alone raised, the others would wait for it
            self.profile = None
            self._calibrator = ProfileCalibrator(module, **self.settings)
            self._done = self._met = 0
            if self.state is not None:
                self._kept = Path(f"{self.state}.{trainer.global_rank}")
                self._share = f"{self.data} ({stage}, process {trainer.global_rank} of {trainer.world_size})"
                check_output(self._kept)
                self._done = self._calibrator.load_state(self._kept, self._share)
                self._saved = time.monotonic()

    @override
    def _on_batch_start(
        self, trainer: Trainer, module: LightningModule, stage: str, batch: Any, batch_idx: int
    ) -> None:
        if self._calibrator is None:
            return
        # Without inputs, no sample of the batch has audio that can be used.
        if self._met < self._done or (isinstance(batch, Mapping) and batch.get("inputs") == {}):
            self._met += 1
            return
        batch = self._typed(batch, f"batch {batch_idx}")
        if self._calibrator.method == "utility":
            batch = self._answered(trainer, module, batch, f"batch {batch_idx}")
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            self._calibrator.update(batch, f"batch {batch_idx}")
        self._met += 1
        if self._kept is not None and time.monotonic() - self._saved >= SAVE_SECONDS:
            self._calibrator.save_state(self._kept, self._met, self._share)
            self._saved = time.monotonic()

    def _typed(self, batch: Any, name: str) -> Any:
        if not isinstance(batch, Mapping) or "types" in batch or "task_names" not in batch:
            return batch
        tasks, types, kinds = batch["task_names"], self.settings["types"], []
        for sample, task in zip(sample_keys(batch, name, len(tasks)), tasks, strict=True):
            if not task:
                raise HeadRouterError(
                    f"{sample}: it has neither a type nor a task, which has one. Give batches 'types', or records a "
                    "task (for all of a data module: task=...)."
                )
            found = get_task(task)
            kind = type_among(found.type, types)
            if kind is None:
                raise HeadRouterError(
                    f"{sample}: its task {task!r} is of type {found.type!r} and family {found.family!r}, neither of "
                    f"which is among the types {', '.join(types)}. Name one of the two in types."
                )
            kinds.append(kind)
        return {**batch, "types": kinds}

    def _answered(self, trainer: Trainer, module: LightningModule, batch: Any, name: str) -> Any:
        if not isinstance(batch, Mapping) or "inputs" not in batch or "labels" in batch["inputs"]:
            return batch
        if "answers" not in batch:
            raise HeadRouterError(f"{name}: the method 'utility' reads inputs['labels'], or 'answers' in the batch.")
        found: Any = find_tokenizer(module, getattr(trainer, "datamodule", None))
        if found is None:
            raise HeadRouterError(
                "The method 'utility' needs a tokenizer for the answers: give the LightningModule or its datamodule an "
                "attribute processor or tokenizer, or the batches inputs['labels']."
            )
        keys = sample_keys(batch, name, len(batch["inputs"]["input_ids"]))
        tokenizer = getattr(found, "tokenizer", found)
        return {**batch, "inputs": append_answers(batch["inputs"], batch["answers"], tokenizer, keys)}

    @override
    def _on_stage_end(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        calibrator, self._calibrator = self._calibrator, None
        if calibrator is None:
            return
        if self._met < self._done:
            raise HeadRouterError(
                f"{self._kept} is the state of {self._done} batches, and there were {self._met}: of other data. Remove "
                "it, or name another."
            )
        if self._kept is not None and self._met > self._done:
            calibrator.save_state(self._kept, self._met, self._share)
        elif self._done:
            rank_zero_warn(
                f"ProfileCalibration: {self._kept} held all {self._done} batches already: none was measured, and those "
                "given were not looked at."
            )
        calibrator.sums.reduce(partial(sum_over_processes, trainer, module))
        self.profile = calibrator.profile(self.name, self.data)
        if trainer.is_global_zero:
            self.profile.save(self.path)
        trainer.strategy.barrier("headrouter_profile")
        if self._kept is not None:
            self._kept.unlink()  # not before: a run that cannot save is not lost
        samples = self.profile.metadata["samples"]
        rank_zero_info(f"ProfileCalibration: {self.path} written, from {samples} samples.")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        calibrator, self._calibrator = self._calibrator, None
        if calibrator is None or self._kept is None or self._met <= self._done:
            return
        try:
            calibrator.save_state(self._kept, self._met, self._share)
        except HeadRouterError as error:  # what stopped the run is what to tell
            warnings.warn(f"ProfileCalibration: what was measured is not kept: {error}", UserWarning, stacklevel=2)
