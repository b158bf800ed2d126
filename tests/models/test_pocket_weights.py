"""Trained weights of the pocket model, written and read. The tiny model stands in for the pocket model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AudioFlamingo3ForConditionalGeneration

from headrouter_pl.models import pocket, pocket_weights
from headrouter_pl.models.pocket import PocketError
from headrouter_pl.models.pocket_weights import export_pocket, load_trained_pocket

FAMILY = "audioflamingo3"


@pytest.fixture(autouse=True)
def tiny_pocket(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(cache: Any, attn_implementation: str, progress: bool) -> Any:
        return tiny.build(FAMILY, attn_implementation=attn_implementation), "its processor"

    monkeypatch.setattr(pocket_weights, "load_pocket", load)


def trained() -> Any:
    """A tiny model, as after training: a projector and an adapter of its own, exact in float16."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|up_proj)", init_lora_weights=False)
    model = get_peft_model(tiny.build(FAMILY), config).eval()
    with torch.no_grad():
        model.get_base_model().model.multi_modal_projector.linear_2.weight.normal_()
        for name, value in model.named_parameters():
            if "lora_" in name or "multi_modal_projector" in name:
                value.copy_(value.half())
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    inputs = tiny.inputs(FAMILY, tiny.build(FAMILY), [[20], [9]])
    return model(**inputs).logits[inputs["attention_mask"].bool()]  # what stands for padding differs with the kernel


def test_the_shipped_weights_are_whole_and_small() -> None:
    pocket_weights._verify(pocket_weights.POCKET_ADAPTER, pocket.pocket_folder(None).name)
    assert sum(file.stat().st_size for file in pocket_weights.POCKET_ADAPTER.iterdir()) <= 16e6
    state = load_file(pocket_weights.POCKET_ADAPTER / "adapter_model.safetensors")
    assert all(value.dtype == torch.float16 and bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("inside", [False, True])
def test_comes_back(tmp_path: Path, inside: bool) -> None:
    model = trained()
    want = logits(model)
    assert (want - logits(tiny.build(FAMILY))).abs().max() > 0.1
    export_pocket(torch.nn.ModuleDict({"model": model}) if inside else model, tmp_path / "out", about={"steps": 3})
    assert sorted(os.listdir(tmp_path / "out")) == [
        "adapter_config.json", "adapter_model.safetensors", "card.json", "projector.safetensors",
    ]  # fmt: skip
    for name in ("adapter_model", "projector"):
        assert {v.dtype for v in load_file(tmp_path / "out" / f"{name}.safetensors").values()} == {torch.float16}
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["steps"] == 3
    assert card["recipe"] == pocket.pocket_folder().name
    merged, processor = load_trained_pocket(tmp_path / "out", attn_implementation="eager")
    assert processor == "its processor"
    assert type(merged) is AudioFlamingo3ForConditionalGeneration
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert merged.config._attn_implementation == "eager"
    torch.testing.assert_close(logits(merged), want, rtol=0, atol=1e-4)
    merged.save_pretrained(tmp_path / "stock")  # stock in this, too
    assert (tmp_path / "stock" / "model.safetensors").is_file()
    apart, _ = load_trained_pocket(tmp_path / "out", merge=False)
    assert isinstance(apart, PeftModel)
    assert not any(p.requires_grad for name, p in apart.named_parameters() if "lora" in name)
    torch.testing.assert_close(logits(apart), want, rtol=0, atol=1e-5)
    half, _ = load_trained_pocket(tmp_path / "out", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_what_is_not_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PocketError, match="no whole export"):
        load_trained_pocket(tmp_path / "nothing")
    folder = export_pocket(trained(), tmp_path / "out")
    file = folder / "projector.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    with pytest.raises(PocketError, match=r"projector\.safetensors: sha256 expected [0-9a-f]{64}, found [0-9a-f]{64}"):
        load_trained_pocket(folder)
    file.unlink()
    with pytest.raises(PocketError, match=r"lacks projector\.safetensors"):
        load_trained_pocket(folder)
    file.write_bytes(whole)
    monkeypatch.setattr(pocket_weights, "pocket_folder", lambda cache=None: Path("elsewhere"))
    with pytest.raises(PocketError, match="this version assembles elsewhere"):
        load_trained_pocket(folder)


def test_a_killed_export_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_pocket(trained(), tmp_path / "out")
    replace, done = os.replace, []

    def stop(source: Any, target: Any) -> None:
        if Path(target).parent == folder:
            if done:
                raise KeyboardInterrupt
            done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(pocket_weights.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            export_pocket(trained(), folder)
    with pytest.raises(PocketError, match="no whole export"):
        load_trained_pocket(folder)
    export_pocket(trained(), folder)
    load_trained_pocket(folder)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(PocketError, match="one LoRA adapter"):
        export_pocket(tiny.build(FAMILY), tmp_path)
    model = trained()
    with torch.no_grad():
        model.get_base_model().model.multi_modal_projector.linear_1.bias.fill_(1e6)
    with pytest.raises(PocketError, match=r"linear_1\.bias is not finite in float16"):
        export_pocket(model, tmp_path)
    assert not (tmp_path / "card.json").exists()
