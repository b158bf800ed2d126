"""Head profiles: what they refuse, how they mix, and their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headrouter_pl.errors import HeadRouterError, ProfileMismatchError, UnknownNameError
from headrouter_pl.profiles import SHIPPED, TYPES, HeadProfile

torch.set_num_threads(1)

LATER = ("queries", "rotary", "pool", "smoothing")  # fields that version 2 of the file did not know
FIELDS = ("name", "types", "families", "bandwidth", "layers", "weighting", "features", *LATER)


def calibrated(**changes: Any) -> HeadProfile:
    gen = torch.Generator().manual_seed(0)
    return HeadProfile(
        **{
            "name": "mine",
            "weights": torch.rand(3, 8, generator=gen).softmax(1),
            "centroids": torch.rand(3, 8, generator=gen),
            "bandwidth": 0.123456789012345678,
            "layers": (1, 3),
            "metadata": {"model_type": "qwen2_audio", "method": "utility", "data": "a, ü, \n"},
            **changes,
        }
    )


# The file


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": None},
        {"weights": None},
        {"centroids": None},
        {"weights": None, "centroids": None},
        {"weighting": "selectivity"},
        {"features": "log", "weights": torch.tensor([[0.5, -0.25] * 4] * 3)},
        {"queries": "last", "rotary": True, "pool": 4, "smoothing": 2},
        {"metadata": {}},
        {
            "types": ("semantic", "acoustic"),
            "families": ("semantic", "acoustic"),
            "weights": torch.eye(2),
            "centroids": None,
        },
    ],
)
def test_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    profile, path = calibrated(**changes), tmp_path / "profile.safetensors"
    profile.save(path)
    for again in (HeadProfile.load(path), HeadProfile.load(str(path))):
        assert [getattr(again, name) for name in FIELDS] == [getattr(profile, name) for name in FIELDS]
        assert again.metadata == profile.metadata
        for name in ("weights", "centroids"):
            mine, its = getattr(profile, name), getattr(again, name)
            assert (mine is None) == (its is None)
            assert mine is None or torch.equal(mine, its)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(1e-12, 1e6), st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4), st.text(max_size=20)
)
def test_round_trip_of_any_text_and_bandwidth(
    tmp_path_factory: pytest.TempPathFactory, bandwidth: float, metadata: dict[str, str], name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    calibrated(bandwidth=bandwidth, metadata=metadata, name=name).save(path)
    again = HeadProfile.load(path)
    assert (again.bandwidth, again.metadata, again.name) == (bandwidth, metadata, name)


def test_what_fitting_leaves_behind_can_be_saved(tmp_path: Path) -> None:
    """Numpy numbers, half precision, tensors that share memory or are not contiguous."""
    shared = torch.rand(8, 3).bfloat16().T
    path = tmp_path / "profile.safetensors"
    calibrated(weights=shared, centroids=shared, bandwidth=np.float64(0.25)).save(path)
    again = HeadProfile.load(path)
    assert again.bandwidth == 0.25
    assert again.weights is not None
    assert again.weights.dtype == torch.float32
    assert torch.equal(again.weights, shared.float())
    calibrated(weights=torch.rand(3, 8).requires_grad_()).save(path)
    assert not HeadProfile.load(path).weights.requires_grad  # type: ignore[union-attr]


def test_it_is_plain_safetensors(tmp_path: Path) -> None:
    calibrated().save(tmp_path / "profile.safetensors")
    assert sorted(load_file(tmp_path / "profile.safetensors")) == ["centroids", "weights"]


def test_load_refuses_what_is_not_a_profile(tmp_path: Path) -> None:
    text = tmp_path / "text.safetensors"
    for content in (b"", b"{}", b"not a safetensors file at all"):
        text.write_bytes(content)
        with pytest.raises(HeadRouterError, match=r"text\.safetensors is not a safetensors file"):
            HeadProfile.load(text)
    for metadata in (None, {"format": "headrouter-profile-9"}):
        save_file({"weights": torch.eye(3)}, tmp_path / "other.safetensors", metadata=metadata)
        with pytest.raises(HeadRouterError, match=r"format .*, expected one of .*'headrouter-profile-2'"):
            HeadProfile.load(tmp_path / "other.safetensors")


def test_load_refuses_a_file_that_is_not_whole(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    calibrated().save(whole)
    content = whole.read_bytes()
    for end in (5, 60, len(content) - 1):
        part.write_bytes(content[:end])
        with pytest.raises(HeadRouterError, match=r"part\.safetensors is not a safetensors file, or is cut short"):
            HeadProfile.load(part)
    assert set(tmp_path.iterdir()) == {whole, part}  # no scratch files


def header_of(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize(
    "broken",
    [{"types": None}, {"bandwidth": "wide"}, {"layers": "[1,"}, {"layers": "3"}, {"metadata": ""}, {"metadata": "[1]"}],
)
def test_load_refuses_a_broken_header(tmp_path: Path, broken: dict[str, str | None]) -> None:
    path = tmp_path / "profile.safetensors"
    calibrated().save(path)
    header = {name: value for name, value in {**header_of(path), **broken}.items() if value is not None}
    save_file(load_file(path), path, metadata=header)
    with pytest.raises(HeadRouterError, match="broken header"):
        HeadProfile.load(path)


def test_load_names_the_file_of_a_profile_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "profile.safetensors"
    calibrated().save(path)
    save_file(load_file(path), path, metadata={**header_of(path), "layers": "[1, 2, 3]"})
    with pytest.raises(HeadRouterError, match=rf"{path}: A profile weighs as many heads in each of its layers"):
        HeadProfile.load(path)


@pytest.mark.parametrize(("version", "unknown"), [(1, ("features", *LATER)), (2, LATER)])
def test_files_of_earlier_versions_still_load(tmp_path: Path, version: int, unknown: tuple[str, ...]) -> None:
    path = tmp_path / "profile.safetensors"
    calibrated().save(path)
    header = {name: value for name, value in header_of(path).items() if name not in unknown}
    save_file(load_file(path), path, metadata={**header, "format": f"headrouter-profile-{version}"})
    again, plain = HeadProfile.load(path), HeadProfile("plain")
    assert [getattr(again, name) for name in unknown] == [getattr(plain, name) for name in unknown]
    assert again.layers == (1, 3)


def test_load_by_name(tmp_path: Path) -> None:
    assert HeadProfile.load("generic") is SHIPPED["generic"]
    with pytest.raises(UnknownNameError, match=r"Unknown profile 'shapr'\. Did you mean 'sharp'"):
        HeadProfile.load("shapr")
    with pytest.raises(UnknownNameError, match="Known profiles: generic, pocket, pocket-deep, pocket-one-pass, sharp"):
        HeadProfile.load(tmp_path)
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(UnknownNameError, match=f"no profile {missing}.*calibrate.*by name there are generic, pocket"):
        HeadProfile.load(missing)


# What does not fit together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"types": ("a", "a", "b")}, "distinct types"),
        ({"families": ("semantic", "acoustic")}, "one family each"),
        ({"families": ("semantic", "acoustic", "visual")}, "'semantic' and 'acoustic', got visual"),
        ({"bandwidth": 0.0}, "positive, got 0.0"),
        ({"bandwidth": float("nan")}, "positive, got nan"),
        ({"weighting": "selectvity"}, "weighting .* got 'selectvity'"),
        ({"features": "logs"}, "'attention' or 'log', got 'logs'"),
        ({"queries": "first"}, "'prompt', 'last' or 'max', got 'first'"),
        ({"pool": 0}, "pool is a number of tokens, at least 1, or None, got 0"),
        ({"smoothing": -1}, "smoothing is a number of tokens, 0 or more, got -1"),
        ({"weights": torch.full((3, 8), torch.nan)}, "weights must be finite"),
        ({"centroids": torch.full((3, 8), torch.inf)}, "centroids must be finite"),
        ({"weights": -torch.rand(3, 8)}, "must not be negative"),
        ({"weights": torch.rand(2, 8)}, r"weights must be \[3, P\], got \[2, 8\]"),
        ({"centroids": torch.rand(3)}, r"centroids must be \[3, P\], got \[3\]"),
        ({"layers": (1, 2, 3)}, r"as many heads in each of its layers, got 8 heads in the layers \[1, 2, 3\]"),
        ({"layers": ()}, r"8 heads in the layers \[\]"),
        ({"metadata": {"samples": 3}}, "metadata are plain strings, got {'samples': 3}"),
        ({"centroids": torch.rand(3, 4)}, r"weights \[3, 8\] and centroids \[3, 4\]"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadRouterError, match=message):
        calibrated(**changes)


def test_check() -> None:
    profile = calibrated()
    profile.check("qwen2_audio", [1, 3], 4)
    with pytest.raises(ProfileMismatchError, match="fitted on model type 'qwen2_audio', the model is 'voxtral'"):
        profile.check("voxtral", [1, 3], 4)
    for layers, heads, product in (([1], 4, 4), ([1, 3], 32, 64)):
        with pytest.raises(ProfileMismatchError) as caught:
            profile.check("qwen2_audio", layers, heads)
        for shape in ("8 heads ([3, 8])", f"{heads} heads in each of the probed layers {layers} ({product})"):
            assert shape in str(caught.value)
    calibrated(metadata={}).check("voxtral", [1, 3], 4)
    with pytest.raises(ProfileMismatchError, match="8 heads"):
        calibrated(weights=None).check("qwen2_audio", [1], 4)
    for name in SHIPPED:
        SHIPPED[name].check("anything", [5], 28)


# What it does


def test_default_types() -> None:
    assert SHIPPED["generic"].types == tuple(TYPES) == ("semantic", "sound", "voice")
    assert SHIPPED["generic"].families == ("semantic", "acoustic", "acoustic")
    assert SHIPPED["generic"].num_probed is None
    assert calibrated().num_probed == calibrated(weights=None).num_probed == 8


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3), st.sampled_from(["type", "selectivity", "generic"]), st.integers(0, 1000), st.booleans())
def test_mix_is_on_the_simplex(batch: int, kind: str, seed: int, flat: bool) -> None:
    gen = torch.Generator().manual_seed(seed)
    route = torch.rand(batch, 3, generator=gen).softmax(1)
    seen = torch.zeros(batch, 8) if flat else torch.rand(batch, 8, generator=gen)
    profile = calibrated(weights=None) if kind == "generic" else calibrated(weighting=kind)
    weights = profile.mix(route, seen)
    assert weights.shape == (batch, 8)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(batch))
    for b in range(batch):
        for h in range(8):
            if kind == "type":
                assert profile.weights is not None
                wanted = sum(float(route[b, t]) * float(profile.weights[t, h]) for t in range(3))
            elif kind == "generic" or flat:
                wanted = 1 / 8
            else:
                wanted = float(seen[b, h]) / float(seen[b].double().sum())
            assert weights[b, h].item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_a_sure_route_takes_the_weights_of_its_type() -> None:
    profile = calibrated()
    assert profile.weights is not None
    torch.testing.assert_close(profile.mix(torch.eye(3), torch.rand(3, 8)), profile.weights)


def test_families_sum_their_types() -> None:
    families = calibrated().family_of(torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.9, 0.0]]))
    torch.testing.assert_close(families["semantic"], torch.tensor([0.5, 0.1]))
    torch.testing.assert_close(families["acoustic"], torch.tensor([0.5, 0.9]))
    alone = calibrated(types=("a",), families=("acoustic",), weights=None, centroids=None)
    assert alone.family_of(torch.ones(2, 1))["semantic"].tolist() == [0, 0]
