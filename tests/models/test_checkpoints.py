"""Adapters and merged checkpoints of a tiny model, as peft and transformers read them."""

from __future__ import annotations

import json
import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headrouter_pl import AudioTokenPruner
from headrouter_pl.errors import ConfigurationError, HeadRouterError, UnknownNameError
from headrouter_pl.models.checkpoints import (
    encoder_digest,
    get_dtype,
    load_adapter,
    load_checkpoint,
    save_adapter,
    save_merged,
)

FAMILY = "audioflamingo3"
TARGETS = ["q_proj", "down_proj"]


class Processor:
    """Saves a file of its own."""

    def save_pretrained(self, folder: str) -> None:
        Path(folder, "processor_config.json").write_text("{}")


def adapted(seed: int = 0, **options: Any) -> PeftModel:
    """A model with an adapter and a projector that do something."""
    model = get_peft_model(tiny.build(FAMILY), LoraConfig(r=2, target_modules=TARGETS, **options))
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "multi_modal_projector" in name:
                weight.add_(torch.randn(weight.shape, generator=gen) * 0.05)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    batch = tiny.inputs(FAMILY, tiny.build(FAMILY), [[20], [9]])
    with torch.no_grad():
        return model(**batch).logits


def test_an_adapter_comes_back_with_its_projector(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(model, tmp_path, projector=True)
    again = load_adapter(tiny.build(FAMILY), tmp_path)
    torch.testing.assert_close(logits(again), logits(model))
    assert not again.training
    save_adapter(model, tmp_path)
    assert not (tmp_path / "projector.safetensors").exists()  # none of another run is left
    assert {name for name, weight in again.named_parameters() if weight.requires_grad} == {
        name for name, _ in again.named_parameters() if "lora_" in name
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("former", [False, True], ids=["new", "over a former one"])
def test_of_an_export_that_was_killed_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, former: bool
) -> None:
    """Nor is anything of it mixed with what was there."""
    model, other = adapted(), adapted(seed=1)
    whole = contents(save_adapter(model, tmp_path / "whole", projector=True))
    replace = os.replace
    for stop in count():
        folder = tmp_path / str(stop)
        before = contents(save_adapter(other, folder, projector=True)) if former else {}
        steps = count()

        def killed(scratch: Path, path: Path, steps: Any = steps, stop: int = stop) -> None:
            if next(steps) == stop:
                raise KeyboardInterrupt
            replace(scratch, path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            try:
                save_adapter(model, folder, projector=True)
            except KeyboardInterrupt:
                pass
            else:
                assert contents(folder) == whole
                break
        if contents(folder) != before or not former:
            with pytest.raises(HeadRouterError, match="has no adapter in peft's format"):
                load_adapter(tiny.build(FAMILY), folder)
    assert stop == len(whole) + 1  # each file, and the projector's own step


def test_what_a_user_wrote_into_the_card_stays(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nTrained on birds.\n")
    save_adapter(adapted(), tmp_path)
    assert "Trained on birds." in card.read_text()


def test_a_named_adapter_is_in_a_folder_of_its_own(tmp_path: Path) -> None:
    model = get_peft_model(tiny.build(FAMILY), LoraConfig(r=2, target_modules=TARGETS), adapter_name="birds")
    for _ in range(2):
        save_adapter(model, tmp_path)
        assert PeftModel.from_pretrained(tiny.build(FAMILY), str(tmp_path / "birds")).peft_config


def test_peft_reads_an_adapter(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(model, tmp_path)
    assert not (tmp_path / "projector.safetensors").exists()
    base = tiny.build(FAMILY)
    base.model.multi_modal_projector.load_state_dict(model.get_base_model().model.multi_modal_projector.state_dict())
    again = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(logits(again), logits(model))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_a_merged_checkpoint_is_a_stock_one(tmp_path: Path, options: dict[str, Any]) -> None:
    model = adapted(**options)
    want = logits(model)
    save_merged(model, Processor(), tmp_path)  # type: ignore[arg-type]
    stock = type(tiny.build(FAMILY)).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(stock), want, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "processor_config.json").is_file()
    assert not list(tmp_path.glob("adapter*"))
    assert torch.equal(logits(model), want)  # and the model is as it was
    assert (logits(tiny.build(FAMILY)) - want).abs().max() > 0.1


def test_a_merged_checkpoint_has_one_dtype(tmp_path: Path) -> None:
    model = get_peft_model(tiny.build(FAMILY, dtype=torch.bfloat16), LoraConfig(r=2, target_modules=TARGETS))
    for name, module in model.named_modules():
        if name.endswith("multi_modal_projector"):
            module.float()
    save_merged(model, Processor(), tmp_path)  # type: ignore[arg-type]
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("architecture", ["Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration"])
def test_of_an_omni_checkpoint_the_thinker_is_loaded(tmp_path: Path, architecture: str) -> None:
    whole = tiny.build("qwen2_5_omni")
    whole.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    thinker, _ = load_checkpoint(str(tmp_path), Processor())  # type: ignore[arg-type]
    assert type(thinker).__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
    batch = tiny.inputs("qwen2_5_omni", whole, [[20], [9]])
    with torch.no_grad():
        assert torch.equal(thinker(**batch).logits, whole.thinker(**batch).logits)


def test_dtypes_by_their_names() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for given in (dtype, str(dtype), str(dtype).removeprefix("torch.")):
            assert get_dtype(given) == dtype


@pytest.mark.parametrize(
    ("given", "dtype"), [(None, torch.bfloat16), ("auto", torch.bfloat16), ("float16", torch.float16)]
)
def test_a_checkpoint_in_its_own_dtype_or_another(given: str | None, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.build(FAMILY, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model, _ = load_checkpoint(str(tmp_path), Processor(), dtype=given)  # type: ignore[arg-type]
    assert model.dtype == dtype


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return save_adapter(adapted(), tmp_path, projector=True)

    @pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
    def test_a_folder_that_is_not_whole(self, folder: Path, file: str) -> None:
        (folder / file).unlink()
        with pytest.raises(HeadRouterError, match="has no adapter in peft's format"):
            load_adapter(tiny.build(FAMILY), folder)
        with pytest.raises(HeadRouterError, match="has no adapter in peft's format"):
            encoder_digest(folder)

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("adapter_model", "has no adapter in peft's format"),
            ("projector", r"projector\.safetensors .* is cut short"),
        ],
    )
    def test_a_cut_file(self, folder: Path, file: str, message: str) -> None:
        path = folder / f"{file}.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(HeadRouterError, match=message):
            load_adapter(tiny.build(FAMILY), folder)

    def test_another_model(self, folder: Path) -> None:
        with pytest.raises(HeadRouterError, match=r"of another model: without \['.*layers.4"):
            load_adapter(tiny.build(FAMILY, num_layers=5), folder)
        with pytest.raises(HeadRouterError, match=r"of another model: .* with \['.*layers.3"):
            load_adapter(tiny.build(FAMILY, num_layers=3), folder)

    def test_another_rank(self, folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
        with pytest.raises(HeadRouterError, match="does not fit AudioFlamingo3"):
            load_adapter(tiny.build(FAMILY), folder)

    def test_another_projector(self, folder: Path) -> None:
        save_file({"linear_1.weight": torch.zeros(2, 2)}, folder / "projector.safetensors")
        with pytest.raises(HeadRouterError, match="does not fit AudioFlamingo3"):
            load_adapter(tiny.build(FAMILY), folder)

    def test_no_projector_to_fill(self, tmp_path: Path, folder: Path) -> None:
        omni = get_peft_model(tiny.build("qwen2_5_omni_thinker"), LoraConfig(r=2, target_modules=["q_proj"]))
        save_adapter(omni, tmp_path / "omni")
        shutil.copy(folder / "projector.safetensors", tmp_path / "omni")
        with pytest.raises(HeadRouterError, match="has no 'multi_modal_projector'"):
            load_adapter(tiny.build("qwen2_5_omni_thinker"), tmp_path / "omni")

    def test_nothing_to_save(self, tmp_path: Path) -> None:
        with pytest.raises(HeadRouterError, match="no adapter to save"):
            save_adapter(tiny.build(FAMILY), tmp_path / "none")
        assert not (tmp_path / "none").exists()


class TestQuantized:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        tiny.build(FAMILY).save_pretrained(tmp_path)
        monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda name: Processor())
        return tmp_path

    def test_a_missing_package_is_named(self, folder: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("bitsandbytes may be there")
        with pytest.raises(ImportError, match="bitsandbytes"):
            load_checkpoint(str(folder), quantization_config={"load_in_4bit": True})

    def test_the_pocket_model_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="pocket model cannot be quantized"):
            load_checkpoint("pocket", quantization_config={"load_in_4bit": True})

    def test_pruned_and_with_an_adapter(self, folder: Path) -> None:
        pytest.importorskip("optimum.quanto")
        model, _ = load_checkpoint(str(folder), quantization_config={"quant_method": "quanto", "weights": "int8"})
        assert model.is_quantized  # type: ignore[attr-defined]
        plain = logits(model)
        assert (plain - logits(tiny.build(FAMILY))).abs().max() > 0
        with AudioTokenPruner(1.0, scorer="fastv")(model):
            assert torch.equal(logits(model), plain)
        with AudioTokenPruner(0.5, scorer="fastv")(model) as report:
            logits(model)
        assert [sample.seen - len(sample.kept) for sample in report.samples] == [10, 5]
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS))
        with pytest.raises(HeadRouterError, match="not merged into quantized weights"):
            save_merged(wrapped, Processor(), folder / "merged")  # type: ignore[arg-type]
        assert not (folder / "merged").exists()

    @pytest.mark.parametrize("name", ["pocket", "pocket-untrained", "owner/not-asked-for"])
    def test_an_unknown_dtype(self, name: str) -> None:
        with pytest.raises(UnknownNameError, match=r"dtype 'fp16'\. Did you mean 'float16'"):
            load_checkpoint(name, dtype="fp16")
