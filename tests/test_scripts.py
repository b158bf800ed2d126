"""Scripts do what their first lines say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

from headrouter_pl import tensorfile

SCRIPTS = Path(__file__).parent.parent / "scripts"
STAND_IN = """#!/usr/bin/env bash
echo "$*" >> asked
case "$*" in
  *pocket_scenes.yaml*) run=pocket_scenes ;;
  *pocket_lora.yaml*) run=pocket ;;
  *) run=pocket_encoder ;;
esac
mkdir -p outputs/$run/checkpoints outputs/$run/adapter
[ "$run" != "$STOPPED" ] || { touch outputs/$run/checkpoints/last.ckpt; exit 1; }
touch outputs/$run/adapter/adapter_config.json
"""
PYTHON = """#!/usr/bin/env bash
echo "python ${1##*/} ${*:2}" >> asked
"""


def train_pocket(folder: Path, stopped: str = "") -> tuple[int, list[str]]:
    """The script's exit status, and what it asks of stand-ins; that for ``headrouter-pl`` can be stopped in a run."""
    for name, stand_in in (("headrouter-pl", STAND_IN), ("python", PYTHON)):
        (folder / name).write_text(stand_in, encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "asked").write_text("", encoding="utf-8")
    done = subprocess.run(
        [SCRIPTS / "train_pocket.sh", "--trainer.devices", "2"],
        cwd=folder,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "STOPPED": stopped},
        check=False,
    )
    return done.returncode, (folder / "asked").read_text(encoding="utf-8").splitlines()


def test_the_pocket_models_training_goes_on_where_it_was(tmp_path: Path) -> None:
    encoder = "fit --config configs/pocket_encoder.yaml --trainer.devices 2"
    decoder = "fit --config configs/pocket_lora.yaml"
    scenes = "fit --config configs/pocket_lora.yaml --config configs/pocket_scenes.yaml --trainer.devices 2"
    assert train_pocket(tmp_path, stopped="pocket") == (1, [encoder, f"{decoder} --trainer.devices 2"])
    resumed = f"{decoder} --ckpt_path outputs/pocket/checkpoints/last.ckpt --trainer.devices 2"
    ship = "python ship_pocket.py outputs/pocket/adapter outputs/pocket_scenes/adapter --output outputs/pocket_weights"
    assert train_pocket(tmp_path) == (0, [resumed, scenes, ship])
    assert train_pocket(tmp_path) == (0, [ship])


def test_the_pocket_models_training_stops_with_a_run_that_fails(tmp_path: Path) -> None:
    status, asked = train_pocket(tmp_path, stopped="pocket_encoder")
    assert status == 1
    assert len(asked) == 1


def load(path: Path) -> ModuleType:
    """A Python script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_several_adapters_ship_as_their_mean(tmp_path: Path) -> None:
    script = load(SCRIPTS / "ship_pocket.py")
    for index, values in enumerate(([1.0, 2.0], [2.0, 4.0], [6.0, 0.0], [1.0, 2.0, 3.0])):
        tensorfile.write(tmp_path / str(index), {"a": torch.tensor(values, dtype=torch.float16)})
    (found,) = script.mean([tmp_path / str(index) for index in range(3)]).values()
    torch.testing.assert_close(found, torch.tensor([3.0, 2.0]))
    with pytest.raises(SystemExit, match="another adapter"):
        script.mean([tmp_path / "0", tmp_path / "3"])


def test_learning_curves_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    logs = {
        "version_2": "epoch,step,train/loss,val/code,val/loss\n0,9,1.0,,\n0,199,,0.5,1.5\n0,399,,0.7,1.2\n",
        "version_10": "epoch,step,val/code,val/loss,val/line\n0,399,0.6,1.3,\n0,599,,1.1,0.25\n",
    }
    for version, text in logs.items():
        (tmp_path / version).mkdir()
        (tmp_path / version / "metrics.csv").write_text(text, encoding="utf-8")
    script = load(SCRIPTS.parent / "benchmarks" / "pocket_pictures.py")
    found = script.read_validation(tmp_path)
    assert found == [
        {"step": 200, "code": 0.5, "loss": 1.5},
        {"step": 400, "code": 0.6, "loss": 1.3},
        {"step": 600, "loss": 1.1, "line": 0.25},
    ]
    figure = script.draw_curves({"pocket": found})
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"code": [[200, 0.5], [400, 0.6]], "line": [[600, 0.25]]}
    with pytest.raises(SystemExit, match="holds no logs"):
        script.read_validation(tmp_path / "version_2")
