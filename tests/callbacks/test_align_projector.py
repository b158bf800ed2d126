"""Processes that train together go on with one aligned projector."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from two_processes import run_two

from headrouter_pl.callbacks import AlignProjector
from headrouter_pl.errors import HeadRouterError

DDP = """
import sys
sys.path[:0] = PATH
import json
from types import SimpleNamespace

import lightning as L
import torch
from torch import nn

from headrouter_pl.callbacks import AlignProjector, align_projector

torch.set_num_threads(1)
states = []


def state(projector):
    return [value.tolist() for value in projector.state_dict().values()]


def drifting(projector, *args, **options):
    with torch.no_grad():
        for tensor in (*projector.parameters(), *projector.buffers()):
            tensor += 1 + trainer.global_rank
    states.append(state(projector))
    return {}


align_projector.align_projector = drifting


class Data(L.LightningDataModule):
    def utterances(self):
        return []

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(2, 3))


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.multi_modal_projector = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.model = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(2, 4))
        self.processor = SimpleNamespace(tokenizer=None)

    def on_train_batch_start(self, batch, batch_idx):
        states.append(state(self.multi_modal_projector))

    def training_step(self, batch, batch_idx):
        return self.multi_modal_projector[0](batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true", max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[AlignProjector()],
)
trainer.fit(Module(), datamodule=Data())
with open(f"{trainer.global_rank}.json", "w") as out:
    json.dump(states, out)
"""


def test_processes_go_on_with_one_projector(tmp_path: Path) -> None:
    """DDP copies parameters when it is set up, before the alignment."""
    (aligned, begun), (other, too) = run_two(DDP, __file__, tmp_path)
    assert aligned != other
    assert begun == too == aligned


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharded_weights_are_refused(strategy: Any) -> None:
    trainer: Any = SimpleNamespace(
        global_step=0, strategy=strategy(), datamodule=SimpleNamespace(utterances=list), is_global_zero=True
    )
    with pytest.raises(HeadRouterError, match="whole weights, and FSDP and DeepSpeed keep parts"):
        AlignProjector().on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
