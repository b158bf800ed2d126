"""LALMModule sharded by FSDP2 over two processes, stopped and resumed, beside a whole run under DDP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_processes import run_two

SCRIPT = """
import sys
sys.path[:0] = PATH
import json
import os
from pathlib import Path

import lightning as L
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import LoraConfig
from torch.utils.data import DataLoader

from headrouter_pl import HeadRouterCallback, LALMModule
from headrouter_pl.callbacks import AdapterExport

torch.set_num_threads(1)
FAMILY = "audioflamingo3"


class Processor:
    tokenizer = None

    def batch_decode(self, ids, skip_special_tokens=False):
        return [" ".join(f"w{int(i)}" for i in row) for row in ids]


def data():
    model, batches = tiny.build(FAMILY), []
    for index, clips in enumerate([[[20], [9]], [[12], [14]], [[8], [16]], [[11], [20]]]):
        inputs = tiny.inputs(FAMILY, model, clips, seed=index)
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[:, -3:] = inputs["input_ids"][:, -3:]
        batches.append({
            "inputs": {**inputs, "labels": labels}, "answers": ["w9 w9", "w8"], "keys": [f"{index}a", f"{index}b"],
        })
    rank = int(os.environ.get("LOCAL_RANK", 0))
    return DataLoader(batches[rank::2], batch_size=None)


class Losses(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.seen.append(float(outputs["loss"]))



kind, epochs, resume = Path("kind.txt").read_text().split()
strategy = "ddp_find_unused_parameters_true"
if kind == "fsdp2":
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
torch.manual_seed(0)
module = LALMModule(
    tiny.build(FAMILY), Processor(), learning_rate=0.02,
    lora=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if int(epochs) else None,
    generate={"max_new_tokens": 4},
)
losses = Losses()
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_progress_bar=False,
    enable_model_summary=False, max_epochs=int(epochs), num_sanity_val_steps=0,
    use_distributed_sampler=False,  # which draws another order where a run is resumed
    callbacks=[
        HeadRouterCallback(0.5, scorer="fastv", stages=("fit", "validate")), losses,
        ModelCheckpoint("checkpoints", save_last=True), *[AdapterExport("adapter")] * (int(epochs) > 0),
    ],
)
if int(epochs):
    trainer.fit(module, data(), data(), ckpt_path="checkpoints/last.ckpt" if resume == "resume" else None)
else:
    trainer.validate(module, data(), verbose=False)
metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
sharded = sum(type(p).__name__ == "DTensor" for p in module.parameters())
found = {"losses": losses.seen, "metrics": metrics, "sharded": sharded}
Path(f"{trainer.global_rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_fsdp2_trains_prunes_scores_and_resumes_as_ddp_goes_on(tmp_path: Path) -> None:
    found: dict[str, list[Any]] = {}
    for kind, *runs in (("ddp", "ddp 2 whole"), ("fsdp2", "fsdp2 1 first", "fsdp2 2 resume")):
        folder = tmp_path / kind
        folder.mkdir()
        for run in runs:
            (folder / "kind.txt").write_text(run)
            ranks = run_two(SCRIPT, __file__, folder)
            so_far = found.get(kind, [{"losses": []}, {"losses": []}])
            for before, rank in zip(so_far, ranks, strict=True):
                rank["losses"] = before["losses"] + rank["losses"]
            found[kind] = ranks
    assert all(rank["sharded"] == 0 for rank in found["ddp"])
    assert all(rank["sharded"] > 50 for rank in found["fsdp2"])
    for one, other in zip(found["ddp"], found["fsdp2"], strict=True):
        assert len(one["losses"]) == 4  # two epochs of two batches each
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert other["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
        assert one["metrics"]["headrouter/keep_ratio"] == 0.5
    ddp, fsdp2 = (load_file(tmp_path / kind / "adapter" / "adapter_model.safetensors") for kind in ("ddp", "fsdp2"))
    assert ddp.keys() == fsdp2.keys()
    for name, value in ddp.items():
        torch.testing.assert_close(fsdp2[name], value, rtol=1e-3, atol=1e-4)
    assert any(value.abs().max() > 1e-3 for name, value in ddp.items() if "lora_B" in name)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_fsdp2_without_an_adapter_prunes_as_ddp(tmp_path: Path) -> None:
    """FSDP2 then replaces `generate` on the very model that the pruner is attached to."""
    found = {}
    for kind in ("ddp", "fsdp2"):
        (tmp_path / "kind.txt").write_text(f"{kind} 0 whole")
        found[kind] = run_two(SCRIPT, __file__, tmp_path)
    for one, other in zip(found["ddp"], found["fsdp2"], strict=True):
        assert one["sharded"] == 0 < other["sharded"]
        assert other["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
        assert one["metrics"]["headrouter/keep_ratio"] == 0.5
