"""What fine-tuning made, as peft and transformers read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from headrouter_pl import HeadRouterCallback, LALMModule
from headrouter_pl.callbacks import AdapterExport
from headrouter_pl.errors import ConfigurationError, HeadRouterError

FAMILY = "audioflamingo3"


class Processor:
    """Saves a file of its own, and writes ids as words."""

    tokenizer = None

    def save_pretrained(self, folder: str) -> None:
        Path(folder, "processor_config.json").write_text("{}")

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False) -> list[str]:
        return [" ".join(map(str, row.tolist())) for row in ids]


def batch() -> dict[str, Any]:
    inputs = tiny.inputs(FAMILY, tiny.build(FAMILY), [[20], [12]])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    return {"inputs": {**inputs, "labels": labels}, "answers": ["w1", "w2"], "keys": ["a", "b"]}


def make(**options: Any) -> LALMModule:
    return LALMModule(tiny.build(FAMILY), Processor(), generate={"max_new_tokens": 4}, **options)  # type: ignore[arg-type]


def fit(module: LALMModule, *callbacks: L.Callback, given: Any = None) -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_steps=3, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, DataLoader((given or [batch()]) * 3, batch_size=None))  # type: ignore[arg-type]


@pytest.mark.parametrize("pruned", [False, True], ids=["unpruned", "pruned"])
def test_the_adapter_and_the_merged_model_say_what_the_module_says(tmp_path: Path, pruned: bool) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    module = make(lora=lora, train_projector=True, learning_rate=0.02)
    pruner = [HeadRouterCallback(0.5, scorer="fastv", stages=("fit",))] if pruned else []
    fit(module, AdapterExport(str(tmp_path / "adapter"), str(tmp_path / "merged")), *pruner)
    module.eval()
    want = module.answer(batch()["inputs"])
    assert want != make().answer(batch()["inputs"])
    again = make(adapter=str(tmp_path / "adapter"), train_projector=True)
    assert again.answer(batch()["inputs"]) == want
    stock = type(tiny.build(FAMILY)).from_pretrained(tmp_path / "merged").eval()
    inputs = {name: value for name, value in batch()["inputs"].items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, module(**inputs).logits, rtol=1e-4, atol=1e-4)
    fit(again, AdapterExport(str(tmp_path / "again")))  # goes on training
    with torch.no_grad():
        assert (again(**inputs).logits - module(**inputs).logits).abs().max() > 1e-3
    assert (tmp_path / "again" / "projector.safetensors").is_file()


def test_a_projector_that_was_loaded_is_saved_again(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    first = make(lora=lora, train_projector=True, learning_rate=0.02)
    fit(first, AdapterExport(str(tmp_path / "first")))
    second = make(adapter=str(tmp_path / "first"), learning_rate=0.02)  # its projector stays as it was trained
    fit(second, AdapterExport(str(tmp_path / "second")))
    second.eval()
    assert make(adapter=tmp_path / "second").answer(batch()["inputs"]) == second.answer(batch()["inputs"])
    one, two = (load_file(tmp_path / name / "projector.safetensors") for name in ("first", "second"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_modules_own_adapter_is_saved_after_its_trainer_went_on(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    module, other = make(lora=lora, learning_rate=0.02), make(lora=lora)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=2
    )
    trainer.fit(module, DataLoader([batch()] * 2, batch_size=None))  # type: ignore[arg-type]
    trainer.validate(other, DataLoader([batch()], batch_size=None), verbose=False)  # type: ignore[arg-type]
    module.save_adapter(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in saved.items() if "lora_B" in name)


def test_a_projector_that_did_not_train_is_not_saved(tmp_path: Path) -> None:
    module = make(lora=LoraConfig(r=2, target_modules=["q_proj"]))
    module.save_adapter(tmp_path)
    assert not (tmp_path / "projector.safetensors").exists()


def test_what_cannot_be_exported_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs a LALMModule with lora or adapter"):
        fit(make(), AdapterExport(str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_model_without_its_encoder_is_not_merged(tmp_path: Path) -> None:
    module = make(lora=LoraConfig(r=2, target_modules=["q_proj"]), encoded_audio=True)
    with pytest.raises(HeadRouterError, match=r"encoder is out of the model.*restore\(\)"):
        module.save_merged(tmp_path)
    assert module.encoded_audio is not None
    module.encoded_audio.restore()
    module.save_merged(tmp_path)
    assert any(
        "audio_tower" in name for name in nn.Module.state_dict(type(tiny.build(FAMILY)).from_pretrained(tmp_path))
    )


def test_arguments_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        make(lora=LoraConfig(target_modules=["q_proj"]), adapter=str(tmp_path))
    with pytest.raises(ConfigurationError, match="given by its name"):
        make(dtype="bfloat16")
    with pytest.raises(ConfigurationError, match="given by its name"):
        make(quantization_config={"load_in_8bit": True})
    with pytest.raises(ConfigurationError, match="num_return_sequences"):
        LALMModule(tiny.build(FAMILY), Processor(), generate={"num_return_sequences": 2})  # type: ignore[arg-type]


def test_running_means_of_frozen_layers_stay(tmp_path: Path) -> None:
    family = "granite_speech"
    model = tiny.build(family)
    module = LALMModule(model, Processor(), lora=LoraConfig(r=2, target_modules=".*language_model.*q_proj"))  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in module.named_buffers() if "running" in name}
    assert before
    inputs = tiny.inputs(family, tiny.build(family), [[20]])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    fit(module, given=[{"inputs": {**inputs, "labels": labels}, "answers": [""], "keys": ["a"]}])
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers() if name in before)
