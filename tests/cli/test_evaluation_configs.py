"""The shipped configurations of the benchmarks, with a tiny model and small trees in the benchmarks' layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_trees import MMAU_CATEGORIES, noise, write_audiomarathon, write_mmau_pro

from headrouter_pl.cli import main
from headrouter_pl.data import AudioError

NO_SYSTEM = ("--data.system_prompt", "null")  # the tiny model's words are few
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def model(tiny_checkpoint: str) -> str:
    return tiny_checkpoint


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # results go to outputs/ of the working folder


def validate(model: str, root: Path, *options: str) -> None:
    main([
        "validate", *options, "--data.root", str(root), "--model.model", model, "--data.processor", model,
        "--model.dtype", "float32", "--model.generate", "{max_new_tokens: 3}", "--data.num_workers", "0",
        "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip


def results(folder: str) -> Any:
    return json.loads(Path("outputs", folder, "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "keep_ratio"), [("audiomarathon_qwen2_5_omni_3b", 0.7), ("audiomarathon_pocket", 0.5)]
)
def test_audiomarathon(model: str, tmp_path: Path, name: str, keep_ratio: float) -> None:
    write_audiomarathon(tmp_path / "data", noise(1.0))
    config = ("--config", str(CONFIGS / f"{name}.yaml"))
    validate(model, tmp_path / "data", *config, "--config", str(CONFIGS / "unpruned.yaml"), *NO_SYSTEM)
    validate(
        model, tmp_path / "data", *config, *NO_SYSTEM, "--trainer.callbacks.unpruned", "outputs/unpruned/results.json"
    )  # fmt: skip
    unpruned, pruned = results("unpruned"), results(name)
    assert len(unpruned["tasks"]) == len(pruned["tasks"]) == 10
    assert unpruned["headrouter"] == {}
    assert pruned["headrouter"]["keep_ratio"] == pytest.approx(keep_ratio, abs=0.03)
    assert set(pruned["percent_of_unpruned"]) == {"tasks", "families", "average"}


def test_mmau_pro(model: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = write_mmau_pro(tmp_path, clip=noise(1.0))
    with pytest.raises(AudioError, match=r"0000[0-9]' asks about 2 recordings"):  # Audio Flamingo 3 takes one
        validate(model, tmp_path, "--config", str(CONFIGS / "mmau_pro_qwen2_5_omni_3b.yaml"), *NO_SYSTEM)
    categories = [c for c in MMAU_CATEGORIES if c != "multi"]
    validate(
        model, tmp_path, "--config", str(CONFIGS / "mmau_pro_qwen2_5_omni_3b.yaml"), *NO_SYSTEM,
        "--data.tasks", json.dumps([*categories, "open", "instruction following"]),
    )  # fmt: skip
    found = results("mmau_pro_qwen2_5_omni_3b")
    assert sum(result["n"] for result in found["tasks"].values()) == len(rows) - 1
    assert len(found["tasks"]) == 11
    # Three words are no more than the three that were allowed.
    assert found["tasks"]["mmau-pro-instruction-following"]["score"] == 100
