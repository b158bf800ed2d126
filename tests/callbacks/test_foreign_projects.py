"""Projects that never heard of this package: the callback is added to their Trainer, and nothing else changes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

from headrouter_pl import AudioTokenPruner, HeadRouterCallback

torch.set_num_threads(1)

FAMILY = "qwen2_audio"
RATIO = 0.4
SEEN, KEPT = 20 + 23 + 12, 8 + 9 + 5
PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


class Tokenizer:
    """Ids as words."""

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False) -> list[str]:
        return [" ".join(f"w{int(i)}" for i in row) for row in ids]


def batches() -> list[dict[str, Any]]:
    model = tiny.build(FAMILY)
    made = []
    for index, clips in enumerate([[[20], [9, 14]], [[12]]]):
        inputs = tiny.inputs(FAMILY, model, clips, seed=index)
        made.append({**inputs, "labels": inputs["input_ids"]})
    return made


def adapted() -> Any:
    torch.manual_seed(0)
    model = get_peft_model(tiny.build(FAMILY), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model.eval()


def attribute(pl: Any) -> Any:
    """The model as an attribute, in a module of one file."""

    class CaptioningModule(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny.build(FAMILY)
            self.tokenizer = Tokenizer()

        def forward(self, batch: Any) -> Any:
            return self.model(**batch)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch).loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self(batch).loss, batch_size=len(batch["input_ids"]))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            ids = self.model.generate(**inputs, max_new_tokens=4, do_sample=False)
            return self.tokenizer.batch_decode(ids[:, -4:])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-4)

    return CaptioningModule()


def subclass(pl: Any) -> Any:
    """A project's base class, with hyperparameters and the model made in configure_model."""

    class BaseTask(pl.LightningModule):
        def __init__(self, name: str, lr: float) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net: Any = None

        def configure_model(self) -> None:
            if self.net is None:
                self.net = torch.nn.ModuleDict({"lalm": tiny.build(self.hparams.name)})
                self.processor = Tokenizer()

        def loss(self, batch: Any) -> Any:
            raise NotImplementedError

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("val_loss", loss, batch_size=len(batch["input_ids"]))
            return {"loss": loss}

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            ids = self.net["lalm"].generate(**inputs, max_new_tokens=4, do_sample=False)
            return self.processor.batch_decode(ids[:, -4:])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    class AsrTask(BaseTask):
        def loss(self, batch: Any) -> Any:
            return self.net["lalm"](**batch).loss

    return AsrTask(FAMILY, lr=1e-4)


def compiled(pl: Any) -> Any:
    """Wrapped in PEFT, and compiled."""

    class LoraModule(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.llm = torch.compile(adapted(), backend="eager")
            self.tokenizer = Tokenizer()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.llm(**batch).loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.llm(**batch).loss, batch_size=len(batch["input_ids"]))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            ids = self.llm.generate(**inputs, max_new_tokens=4, do_sample=False)
            return self.tokenizer.batch_decode(ids[:, -4:])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-4)

    return LoraModule()


STYLES = {"attribute": attribute, "subclass": subclass, "compiled": compiled}


def make_trainer(pl: Any, *callbacks: Any, **options: Any) -> Any:
    return pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks), **options,
    )  # fmt: skip


def loader() -> Any:
    return DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]


def reference(style: str) -> tuple[float, list[str]]:
    """Mean loss, and answers, by the plain pruner and no Trainer."""
    model = adapted() if style == "compiled" else tiny.build(FAMILY)
    losses, sizes, said = [], [], []
    with torch.no_grad(), AudioTokenPruner(RATIO, tokenizer=Tokenizer())(model):
        for batch in batches():
            losses.append(float(model(**batch).loss))
            sizes.append(len(batch["input_ids"]))
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            said += Tokenizer().batch_decode(ids[:, -4:])
    return sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes), said


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("style", STYLES)
def test_evaluation(style: str, package: str) -> None:
    pl = importlib.import_module(package)
    loss, said = reference(style)
    module = STYLES[style](pl)
    (plain,) = make_trainer(pl).validate(module, loader(), verbose=False)
    callback = HeadRouterCallback(RATIO)
    trainer = make_trainer(pl, callback)
    (pruned,) = trainer.validate(module, loader(), verbose=False)
    assert pruned["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert abs(plain["val_loss"] - loss) > 1e-3
    assert pruned["headrouter/audio_tokens_seen"] == SEEN
    assert pruned["headrouter/audio_tokens_kept"] == KEPT
    answers = make_trainer(pl, HeadRouterCallback(RATIO)).predict(module, loader())
    assert [text for batch in answers for text in batch] == said
    (after,) = make_trainer(pl).validate(module, loader(), verbose=False)
    assert after["val_loss"] == plain["val_loss"]  # no trace is left


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("style", STYLES)
def test_fit_with_pruned_validation(style: str, package: str) -> None:
    pl = importlib.import_module(package)
    module, callback = STYLES[style](pl), HeadRouterCallback(RATIO)
    trainer = make_trainer(pl, callback, max_epochs=1)
    trainer.fit(module, loader(), loader())
    assert callback.totals["validate"]["audio_tokens_kept"] == KEPT
    assert "fit" not in callback.totals or callback.totals["fit"]["audio_tokens_kept"] == 0
    assert float(trainer.callback_metrics["headrouter/audio_tokens_kept"]) == KEPT


PROJECT = """
import sys
sys.path[:0] = PATH
import lightning as L
import torch
from torch.utils.data import DataLoader

from test_foreign_projects import Tokenizer, batches, tiny


class TheirModule(L.LightningModule):
    def __init__(self, family: str = "qwen2_audio"):
        super().__init__()
        self.model, self.tokenizer = tiny.build(family), Tokenizer()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.model(**batch).loss, batch_size=len(batch["input_ids"]))


class TheirData(L.LightningDataModule):
    def val_dataloader(self):
        return DataLoader(batches(), batch_size=None)


if __name__ == "__main__":
    from lightning.pytorch.cli import LightningCLI

    LightningCLI(TheirModule, TheirData, save_config_callback=None)
"""

YAML = """
trainer:
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: ., name: "", version: ""}
  callbacks:
    - class_path: headrouter_pl.HeadRouterCallback
      init_args: {keep_ratio: 0.4}
"""


def test_their_own_lightning_cli(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "support"), str(here.parents[1])]
    (tmp_path / "train.py").write_text(PROJECT.replace("PATH", repr(paths)))
    (tmp_path / "config.yaml").write_text(YAML)
    done = subprocess.run(
        [sys.executable, "train.py", "validate", "--config", "config.yaml"], cwd=tmp_path, capture_output=True,
        text=True, timeout=120, env={**os.environ, "PYTHONPATH": paths[-1]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    names, values = (tmp_path / "metrics.csv").read_text().split()
    metrics = dict(zip(names.split(","), map(json.loads, values.split(",")), strict=True))
    assert metrics["val_loss"] == pytest.approx(reference("attribute")[0], rel=1e-4)
    assert metrics["headrouter/audio_tokens_kept"] == KEPT
