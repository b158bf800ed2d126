"""Files of tensors are read whole, replaced as a whole, and plain safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch

from headrouter_pl import HeadProfile, PromptRouter, tensorfile
from headrouter_pl.calibration import ProfileCalibrator
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.profiles.head_profile import SHIPPED_FOLDER
from headrouter_pl.scorers import LinearProbeScorer

HEADER = {"format": "x", "text": "a, ü, \n"}


def content(path: Path) -> tuple[dict[str, Any], str]:
    """Header, whose order safetensors draws at random, and a digest of the rest."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), hashlib.sha256(raw[8 + length :]).hexdigest()


def test_round_trip(tmp_path: Path) -> None:
    path, shared = tmp_path / "x", torch.arange(12.0).reshape(3, 4)
    tensors = {
        "shared": shared, "strided": shared.T, "part": shared[:, 1], "double": torch.rand(2, dtype=torch.float64),
        "trained": torch.rand(2, requires_grad=True), "whole": torch.tensor([1, 2]), "empty": torch.zeros(0, 3),
    }  # fmt: skip
    tensorfile.write(path, tensors, HEADER)
    header, again = tensorfile.read(str(path))
    assert header == HEADER
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in tensors.items())
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
    plain = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(plain, tmp_path / "y", metadata=HEADER)
    assert content(path) == content(tmp_path / "y")


def test_without_a_header(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "x", {"a": torch.ones(2)})
    assert tensorfile.read(tmp_path / "x")[0] == {}
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tensorfile.write(path, {"a": torch.ones(1000)}, HEADER)
    _, tensors = tensorfile.read(path)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(tensors["a"], torch.ones(1000))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for missing in (path, tmp_path):
        with pytest.raises(HeadRouterError, match=f"no file {missing}"):
            tensorfile.read(missing)
    tensorfile.write(path, {"a": torch.ones(1000)}, HEADER)
    whole = path.read_bytes()
    for part in (b"", b"text", whole[:60], whole[:-1]):
        path.write_bytes(part)
        with pytest.raises(HeadRouterError, match=f"{path} is not a safetensors file, or is cut short"):
            tensorfile.read(path)


def test_others_may_read_what_they_may_read_of_other_files(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "x", {"a": torch.ones(2)})
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "x", tmp_path / "folder"):
        with pytest.raises(HeadRouterError, match=f"{path} cannot be written"):
            tensorfile.write(path, {"a": torch.ones(2)})
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def save_profile(path: Path) -> None:
    HeadProfile("x", weights=torch.eye(3)).save(path)


def save_probe(path: Path) -> None:
    LinearProbeScorer(torch.ones(2, 5), torch.ones(2), ("a", "b"), ("semantic", "acoustic")).save(path)


def save_router(path: Path) -> None:
    PromptRouter().fit(["What is said?", "Who speaks?"], ["semantic", "acoustic"]).save(path)


def save_state(path: Path) -> None:
    ProfileCalibrator(tiny.build("qwen2_audio")).save_state(path, 1)


@pytest.mark.parametrize("save", [save_profile, save_probe, save_router, save_state])
def test_a_disk_that_is_full_leaves_the_file_that_was_there(
    save: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")

    def full(file: Path, content: bytes) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HeadRouterError, match=rf"{path} cannot be written: .*No space left"):
        save(path)
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("path", sorted(SHIPPED_FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def test_shipped_profiles_are_written_again_as_they_are(path: Path, tmp_path: Path) -> None:
    HeadProfile.load(path).save(tmp_path / "again")
    assert content(tmp_path / "again") == content(path)
