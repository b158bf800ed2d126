"""The three runs that train the pocket model hand on to each other what they say they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from headrouter_pl.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = {
    "encoder": ["pocket_encoder"],
    "decoder": ["pocket_lora"],
    "scenes": ["pocket_lora", "pocket_scenes"],
}


@pytest.fixture
def parsed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What ``fit`` reads of each run's files, types and names checked."""
    found = {}
    for run, names in RUNS.items():
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["fit", *(f"--config={CONFIGS / name}.yaml" for name in names), "--print_config"])
        found[run] = yaml.safe_load(capsys.readouterr().out)
    return found


def callback(run: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [
        entry["init_args"] for entry in run["trainer"]["callbacks"] if entry["class_path"].rpartition(".")[2] == name
    ]


def test_each_run_goes_on_from_the_one_before(parsed: dict[str, Any]) -> None:
    exported = {run: callback(given, "AdapterExport")[0]["folder"] for run, given in parsed.items()}
    assert len(set(exported.values())) == 3
    assert parsed["decoder"]["model"]["init_args"]["adapter"] == exported["encoder"]
    assert parsed["scenes"]["model"]["init_args"]["adapter"] == exported["decoder"]
    for run in ("decoder", "scenes"):
        assert parsed[run]["data"]["init_args"]["encoder"] == exported["encoder"]
        assert parsed[run]["model"]["init_args"]["train_projector"]


def test_each_run_keeps_its_checkpoints_apart_and_can_go_on(parsed: dict[str, Any]) -> None:
    folders = []
    for given in parsed.values():
        regular = [entry for entry in callback(given, "ModelCheckpoint") if entry["save_last"]]
        assert len(regular) == 1
        assert regular[0]["every_n_train_steps"] == 50
        folders.append(regular[0]["dirpath"])
    assert len(set(folders)) == 3


def test_the_last_run_hears_fuller_audio_more_slowly(parsed: dict[str, Any]) -> None:
    before, after = (parsed[run]["model"]["init_args"] for run in ("decoder", "scenes"))
    assert after["learning_rate"] < before["learning_rate"]
    (stage,) = parsed["scenes"]["data"]["init_args"]["stages"]
    assert max((part["init_args"] for part in stage), key=lambda part: part["samples"])["events"] == [3, 7]
