"""What several callbacks need."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from typing_extensions import override

from headrouter_pl.pruning.prompts import Tokenizer


def is_sharded(trainer: Trainer) -> bool:
    """Whether the strategy spreads the weights over processes, so that none can run or save the model alone."""
    return isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy))


def find_tokenizer(*owners: object) -> Tokenizer | None:
    """The attribute ``processor`` or ``tokenizer`` of the first owner that has a usable one."""
    for owner in owners:
        for name in ("processor", "tokenizer"):
            found = getattr(owner, name, None)
            if hasattr(found, "batch_decode"):
                return found
    return None


def sum_over_processes(trainer: Trainer, module: LightningModule, values: Tensor) -> Tensor:
    """Sums of float64 values over all processes, on the CPU; the same in each."""
    # float64 where the device has it: byte counts pass float32's exact integers.
    dtype = torch.float32 if module.device.type == "mps" else torch.float64
    # A copy: the sum is written into what is given.
    total = trainer.strategy.reduce(values.to(dtype, copy=True).to(module.device), reduce_op="sum")
    return total.cpu().double()


class StageCallback(Callback):
    """One method for what Lightning has a hook of its own for in each stage.

    A subclass writes those that it needs; ``stage`` is ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``. The
    epochs of ``"fit"`` are left out. Stages nest: those of validation lie inside that of ``"fit"``.
    """

    def _on_stage_start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        pass

    def _on_epoch_start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        pass

    def _on_batch_start(
        self, trainer: Trainer, module: LightningModule, stage: str, batch: Any, batch_idx: int
    ) -> None:
        pass

    def _on_batch_end(self, trainer: Trainer, module: LightningModule, stage: str, outputs: Any, batch: Any) -> None:
        pass

    def _on_epoch_end(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        pass

    def _on_stage_end(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        pass

    # fit

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_stage_start(trainer, pl_module, "fit")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._on_batch_start(trainer, pl_module, "fit", batch, batch_idx)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._on_batch_end(trainer, pl_module, "fit", outputs, batch)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_stage_end(trainer, pl_module, "fit")

    # validate

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_stage_start(trainer, pl_module, "validate")

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_epoch_start(trainer, pl_module, "validate")

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._on_batch_start(trainer, pl_module, "validate", batch, batch_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._on_batch_end(trainer, pl_module, "validate", outputs, batch)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_epoch_end(trainer, pl_module, "validate")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_stage_end(trainer, pl_module, "validate")

    # test

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_stage_start(trainer, pl_module, "test")

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_epoch_start(trainer, pl_module, "test")

    @override
    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._on_batch_start(trainer, pl_module, "test", batch, batch_idx)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._on_batch_end(trainer, pl_module, "test", outputs, batch)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_epoch_end(trainer, pl_module, "test")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_stage_end(trainer, pl_module, "test")

    # predict

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_stage_start(trainer, pl_module, "predict")

    @override
    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_epoch_start(trainer, pl_module, "predict")

    @override
    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._on_batch_start(trainer, pl_module, "predict", batch, batch_idx)

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._on_batch_end(trainer, pl_module, "predict", outputs, batch)

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_epoch_end(trainer, pl_module, "predict")

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._on_stage_end(trainer, pl_module, "predict")
