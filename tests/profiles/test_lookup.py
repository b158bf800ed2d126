"""Which shipped profile is found for which model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from headrouter_pl import AudioTokenPruner
from headrouter_pl.errors import ProfileMismatchError
from headrouter_pl.models import find_lalm
from headrouter_pl.models.families import FAMILIES
from headrouter_pl.models.shapes import SHAPES
from headrouter_pl.profiles import HeadProfile, find_shipped, fingerprint
from headrouter_pl.profiles.lookup import SHIPPED_FOLDER

torch.set_num_threads(1)

FAMILY = "qwen2_audio"
FAMILY_NAMES = [name for name in tiny.FAMILIES if tiny.available(name) and (name in FAMILIES or name == "qwen2_5_omni")]
MODULE = "headrouter_pl.profiles.lookup.SHIPPED_FOLDER"


def profile_for(model: Any, layers: tuple[int, ...], name: str = "mine", **metadata: str) -> HeadProfile:
    weights = torch.rand(3, tiny.HEADS * len(layers)).softmax(1)
    made = {**fingerprint(find_lalm(model), layers), "method": "by hand", **metadata}
    return HeadProfile(name, weights=weights, layers=layers, metadata=made)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_fingerprint_of_every_family(name: str) -> None:
    model = tiny.build(name)
    handle = find_lalm(model)
    found = fingerprint(handle, [0])
    sample = tiny.inputs(name, model, [[8]])
    widths: list[int] = []
    hook = handle.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: widths.append((args[0] if args else kwargs["hidden_states"]).shape[-1]),
        with_kwargs=True,
    )
    with torch.no_grad():
        handle.model(**sample)
    hook.remove()
    assert found["hidden_size"] == str(widths[0])
    assert found["num_layers"] == str(len(handle.layers))
    assert found["num_heads"] == str(handle.num_heads(0)[0])


def test_found_by_model_and_prune_layer(tmp_path: Path) -> None:
    model = tiny.build(FAMILY)
    handle = find_lalm(model)
    profile_for(model, (0, 1)).save(tmp_path / "b.safetensors")
    profile_for(model, (1,), name="later").save(tmp_path / "c.safetensors")
    profile_for(model, (1,), name="other", hidden_size="96").save(tmp_path / "a.safetensors")
    profile_for(model, (2,), name="deep").save(tmp_path / "d.safetensors")
    found = find_shipped(handle, 2, tmp_path)
    assert found is not None
    assert found.name == "mine"
    assert found.layers == (0, 1)
    assert find_shipped(handle, 3, tmp_path).name == "deep"  # type: ignore[union-attr]
    assert find_shipped(handle, 1, tmp_path) is None
    assert find_shipped(find_lalm(tiny.build(FAMILY, num_layers=5)), 2, tmp_path) is None
    assert find_shipped(find_lalm(tiny.build("voxtral")), 2, tmp_path) is None
    # A scout pass may probe above the prune layer.
    replace(profile_for(model, (0, 3), name="scouting", layer="1"), pool=4).save(tmp_path / "e.safetensors")
    assert find_shipped(handle, 1, tmp_path).name == "scouting"  # type: ignore[union-attr]
    # Of two, the one that needs less of the model.
    replace(profile_for(model, (0, 2), name="cheaper", layer="1"), pool=4).save(tmp_path / "f.safetensors")
    assert find_shipped(handle, 1, tmp_path).name == "cheaper"  # type: ignore[union-attr]


def test_auto_prunes_by_the_shipped_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny.build(FAMILY), tiny.build("audioflamingo3")
    monkeypatch.setattr(MODULE, tmp_path)
    weights = torch.zeros(3, 2 * tiny.HEADS)
    weights[:, 5] = 1.0
    metadata = {**fingerprint(find_lalm(model), (0, 1)), "method": "by hand"}
    mine = HeadProfile("mine", weights=weights, layers=(0, 1), metadata=metadata)
    mine.save(tmp_path / "mine.safetensors")
    batch = tiny.inputs(FAMILY, model, [[20], [9]])
    pruner = AudioTokenPruner(keep_ratio=0.3, layer=2, router="selectivity")
    kept = {}
    for name, chosen in {
        "auto": pruner,
        "mine": AudioTokenPruner(keep_ratio=0.3, layer=2, router="selectivity", profile=mine),
        "generic": AudioTokenPruner(keep_ratio=0.3, layer=2, router="selectivity", profile="generic"),
    }.items():
        with torch.no_grad(), chosen(model) as report:
            model(**batch)
        kept[name] = [sample.kept.tolist() for sample in report.samples]
        assert f"head profile: {name if name != 'auto' else 'mine'} (" in str(report)
    assert kept["auto"] == kept["mine"] != kept["generic"]
    # The same pruner on a model that nothing is shipped for.
    with torch.no_grad(), pruner(other) as report:
        other(**tiny.inputs("audioflamingo3", other, [[20]]))
    assert "head profile: generic (none: the same weight on every head)" in str(report)


def test_a_profile_of_a_model_of_another_size_is_refused() -> None:
    profile = profile_for(tiny.build(FAMILY), (1,))
    with pytest.raises(ProfileMismatchError, match="qwen2_audio model with num_layers 4; this one has num_layers 5"):
        AudioTokenPruner(profile=profile, router="selectivity").engine(tiny.build(FAMILY, num_layers=5))
    AudioTokenPruner(profile=profile, router="selectivity").engine(tiny.build(FAMILY, seed=1))


def test_what_is_shipped_loads_and_is_told_apart() -> None:
    seen = set()
    for path in SHIPPED_FOLDER.glob("*.safetensors"):
        profile = HeadProfile.load(path)
        assert profile.layers
        keys = ("model_type", "num_layers", "num_heads", "hidden_size", "layer")
        seen.add((*(profile.metadata[key] for key in keys), max(profile.layers)))
        assert HeadProfile.load(path.stem).metadata == profile.metadata
    assert len(seen) == len(list(SHIPPED_FOLDER.glob("*.safetensors")))


def test_auto_on_the_pocket_model() -> None:
    model = SHAPES["pocket"].build(device="meta")
    for layer, name in ((None, "pocket-one-pass"), (2, "pocket"), (4, "generic")):
        engine = AudioTokenPruner(layer=layer, router="selectivity").engine(model)
        assert engine.report.profile is not None
        assert (engine.report.profile.name, engine.layer) == (name, layer or 3)


@pytest.mark.parametrize(
    ("name", "layer", "pool"), [("pocket", 2, 4), ("pocket-one-pass", 3, None), ("pocket-deep", 2, 4)]
)
def test_the_pocket_models_profiles_come_with_the_package(name: str, layer: int, pool: int | None) -> None:
    profile = HeadProfile.load(name)
    assert (profile.metadata["layer"], profile.pool) == (str(layer), pool)
    assert set(profile.types) == {"semantic", "voice", "sound"}
    card = json.loads((Path(__file__).parents[2] / "docs" / "data" / "pocket_eval.json").read_text(encoding="utf-8"))
    assert f"weights {card['weights']}," in profile.metadata["data"]  # fitted to the weights that are shipped
