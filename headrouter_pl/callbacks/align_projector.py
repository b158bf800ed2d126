"""Aligns a projector with the decoder's vocabulary before fine-tuning starts."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from headrouter_pl.alignment import align_projector
from headrouter_pl.callbacks._common import is_sharded
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models.checkpoints import find_projectors

__all__ = ["AlignProjector"]


class AlignProjector(Callback):
    """Runs :func:`headrouter_pl.alignment.align_projector` once, before the first training step.

    The data module gives the recordings, by its method ``utterances()``. A resumed run, and one that begins with the
    weights of another (``initial_checkpoint``, or an ``adapter`` with its projector), are left as they are. Of several
    processes each aligns its copy, and all go on with that of process zero. Sharded weights (FSDP,
    DeepSpeed) are refused. A module that has an :class:`headrouter_pl.alignment.Alignment` as its ``alignment`` goes on
    with it.

    Args:
        steps: Optimizer steps.
        batch_size: Recordings in a step.
        learning_rate: Highest rate.
    """

    def __init__(self, steps: int = 2500, batch_size: int = 64, learning_rate: float = 2e-3) -> None:
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Aligns, unless training has begun already."""
        if trainer.global_step or getattr(pl_module, "projector_trained", False):
            return
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "utterances"):
            raise HeadRouterError(f"AlignProjector needs a data module with utterances(), got {type(data).__name__}.")
        if is_sharded(trainer):
            raise HeadRouterError(
                "AlignProjector trains whole weights, and FSDP and DeepSpeed keep parts in each process. Align in one "
                "process or under DDP, and begin with that run's checkpoint (initial_checkpoint)."
            )
        projector = find_projectors(pl_module)[0]
        model: Any = pl_module
        alignment = getattr(pl_module, "alignment", None)
        figures = align_projector(
            projector,
            model.model.get_input_embeddings().weight,
            model.processor.tokenizer,
            data.utterances(),
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            alignment=alignment,
            progress=trainer.is_global_zero,
        )
        if trainer.world_size > 1:
            # On a GPU the gradient of CTC is not deterministic, and DDP copies weights only when it is set up.
            trained = [*projector.parameters(), *projector.buffers()]
            for tensor in [*trained, *(() if alignment is None else alignment.parameters())]:
                torch.distributed.broadcast(tensor.detach(), src=0)
        rank_zero_info("Aligned: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
