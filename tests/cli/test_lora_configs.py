"""The shipped fine-tuning configurations, with a tiny model in the place of theirs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
import tiny_pocket
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from headrouter_pl.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = {
    "lora_qwen2_audio": "qwen2_audio",
    "lora_qwen2_5_omni": "qwen2_5_omni_thinker",
    "lora_voxtral": "voxtral",
    "lora_pocket": "audioflamingo3",
}


@pytest.fixture
def model(tiny_checkpoint: str) -> str:
    return tiny_checkpoint


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = []
    for index in range(6):
        soundfile.write(f"{index}.wav", tiny_pocket.noise(index, 1.0), 16_000)
        rows.append({"audio": f"{index}.wav", "prompt": "w40 w41", "answer": f"w5{index}"})
    for name, part in (("train.jsonl", rows[:4]), ("validation.jsonl", rows[4:])):
        Path(name).write_text("\n".join(map(json.dumps, part)))


def run(command: str, name: str, model: str, *options: str) -> None:
    main([
        command, "--config", str(CONFIGS / f"{name}.yaml"), "--model.model", model, "--data.processor", model,
        "--model.dtype", "float32", "--model.generate", "{max_new_tokens: 3}", "--data.num_workers", "0",
        "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false",
        "--trainer.log_every_n_steps", "1", "--data.system_prompt", "null", *options,
    ])  # fmt: skip


def logged(name: str) -> dict[str, float]:
    (path,) = sorted(Path("outputs", name, "logs").glob("version_*/metrics.csv"))[-1:]
    with path.open() as file:
        return {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}


@pytest.mark.parametrize("name", FAMILIES)
def test_fit_then_validate_the_adapter(model: str, name: str) -> None:
    run("fit", name, model, "--trainer.accumulate_grad_batches", "1")
    metrics = logged(name)
    assert metrics["headrouter/keep_ratio"] == pytest.approx(0.7, abs=0.03)
    assert metrics["headrouter/samples"] == 2
    adapter = Path("outputs", name, "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    assert any(np.abs(value.numpy()).max() > 0 for key, value in weights.items() if "lora_B" in key)
    assert (Path("outputs", name, "checkpoints") / "last.ckpt").is_file()
    run("validate", name, model, "--model.lora", "null", "--model.adapter", str(adapter))


def test_training_steps_are_pruned_when_asked(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "lora_pocket", model, "--trainer.callbacks.stages", "[fit, validate]")
    assert logged("lora_pocket")["headrouter/keep_ratio"] == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_lora_is_on_every_decoder_layer_and_nothing_else(name: str, family: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = config["model"]["init_args"]["lora"]["init_args"]
    adapted = get_peft_model(tiny.build(family), LoraConfig(**settings))
    names = [key for key, weight in adapted.named_parameters() if weight.requires_grad]
    assert all("language_model.layers" in key for key in names)
    per_layer = {re.findall(r"layers\.(\d+)", key)[0] for key in names}
    assert len(per_layer) == len(tiny.layers(family, adapted.get_base_model()))
    assert len(names) == 2 * 7 * len(per_layer)
    assert config["data"]["init_args"]["processor"] == config["model"]["init_args"]["model"]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("ddp", "ddp_find_unused_parameters_true"),
        ("fsdp2", "ModelParallelStrategy"),
        ("deepspeed", "deepspeed_stage_2"),
    ],
)
def test_strategies_go_after_another_configuration(
    name: str, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([
            "fit", "--config", str(CONFIGS / "lora_qwen2_audio.yaml"), "--config",
            str(CONFIGS / f"strategy_{name}.yaml"), "--print_config",
        ])  # fmt: skip
    assert ended.value.code == 0
    merged = yaml.safe_load(capsys.readouterr().out)
    found = merged["trainer"]["strategy"]
    assert strategy in (found if isinstance(found, str) else found["class_path"])
    assert merged["model"]["init_args"]["model"] == "Qwen/Qwen2-Audio-7B-Instruct"
    assert len(merged["trainer"]["callbacks"]) == 4
