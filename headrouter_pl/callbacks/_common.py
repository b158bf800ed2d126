"""What several callbacks need."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

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
