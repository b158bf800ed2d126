"""The linear probe: against a loop, routed, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

from headrouter_pl import AudioTokenPruner, tensorfile
from headrouter_pl.errors import HeadRouterError, ProfileMismatchError
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers import FixedRouter
from headrouter_pl.scorers import LinearProbeScorer, ScoringInputs

torch.set_num_threads(1)

TYPES, FAMILIES = ("semantic", "sound"), ("semantic", "acoustic")


def probe(router: Any = "selectivity", d: int = 5, **options: Any) -> LinearProbeScorer:
    generator = torch.Generator().manual_seed(0)
    weights, bias = torch.randn(2, d, generator=generator), torch.tensor([0.5, -1.0])
    return LinearProbeScorer(weights, bias, TYPES, FAMILIES, router, **options)


def inputs_of(batch: int = 2, n: int = 6, d: int = 5) -> ScoringInputs:
    mask = torch.ones(batch, n, dtype=torch.bool)
    embeddings = torch.randn(batch, n, d, generator=torch.Generator().manual_seed(1))
    return ScoringInputs(mask, torch.full((batch,), 2), embeddings=embeddings)


def test_it_is_the_mixed_probability_of_evidence() -> None:
    scorer, inputs = probe(), inputs_of()
    scores = scorer.score(inputs)
    assert inputs.embeddings is not None
    for b in range(2):
        for j in range(6):
            chance = 0.0
            for t in range(2):
                logit = scorer.bias[t].double() + sum(
                    scorer.weights[t, c].double() * inputs.embeddings[b, j, c].double() for c in range(5)
                )
                chance += 0.5 * float(torch.sigmoid(logit))
            assert scores[b, j].exp().item() == pytest.approx(chance, abs=1e-6)
    assert inputs.types == TYPES
    assert inputs.families["semantic"].tolist() == [0.5, 0.5]


def test_a_fixed_route_is_the_probe_of_that_type() -> None:
    router = FixedRouter(["sound", "semantic"])
    scorer, inputs = probe(router), inputs_of()
    scores = scorer.score(inputs)
    assert inputs.embeddings is not None
    for b, t in enumerate((1, 0)):
        logits = inputs.embeddings[b] @ scorer.weights[t] + scorer.bias[t]
        torch.testing.assert_close(scores[b].exp(), logits.sigmoid(), atol=1e-6, rtol=1e-5)


def test_sure_tokens_are_still_told_apart() -> None:
    scorer, inputs = probe(FixedRouter(["sound"])), inputs_of(1)
    scorer.weights[1] = torch.tensor([1.0, 0, 0, 0, 0])
    inputs.embeddings = torch.zeros(1, 6, 5)
    inputs.embeddings[0, :, 0] = torch.arange(20.0, 26.0)
    assert scorer.score(inputs)[0].argsort().tolist() == list(range(6))


def test_saved_and_loaded(tmp_path: Path) -> None:
    scorer = probe(metadata={"model_type": "qwen2_audio", "fitted": "here"})
    scorer.save(tmp_path / "probe.safetensors")
    again = LinearProbeScorer.load(tmp_path / "probe.safetensors", router="selectivity")
    assert again.profile.types == TYPES
    assert again.profile.families == FAMILIES
    assert again.metadata == scorer.metadata
    assert torch.equal(again.score(inputs_of()), scorer.score(inputs_of()))
    assert LinearProbeScorer.load(tmp_path / "probe.safetensors").needs_prompts


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(HeadRouterError, match=r"no file .*missing\.safetensors"):
        LinearProbeScorer.load(tmp_path / "missing.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 12)
    with pytest.raises(HeadRouterError, match="not a safetensors file"):
        LinearProbeScorer.load(tmp_path / "cut.safetensors")
    HeadProfile("x").save(tmp_path / "profile.safetensors")
    with pytest.raises(HeadRouterError, match=r"not a linear probe: format 'headrouter-profile-\d'"):
        LinearProbeScorer.load(tmp_path / "profile.safetensors")
    save_file({"weights": torch.zeros(2, 2)}, tmp_path / "bare.safetensors")
    with pytest.raises(HeadRouterError, match="not a linear probe: format None"):
        LinearProbeScorer.load(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("part", "damaged"),
    [("types", None), ("families", "["), ("families", "3"), ("metadata", "3"), ("weights", None), ("bias", None)],
)
def test_a_damaged_file(tmp_path: Path, part: str, damaged: str | None) -> None:
    path = tmp_path / "probe.safetensors"
    probe().save(path)
    header, tensors = tensorfile.read(path)
    header.pop(part, None)
    tensors.pop(part, None)
    tensorfile.write(path, tensors, header if damaged is None else {**header, part: damaged})
    with pytest.raises(HeadRouterError, match=r"probe\.safetensors is a linear probe with a broken header"):
        LinearProbeScorer.load(path)


@pytest.mark.parametrize(("weights", "bias"), [((2, 5), (3,)), ((3, 5), (2,)), ((5,), (2,))])
def test_shapes_that_do_not_fit(weights: tuple[int, ...], bias: tuple[int, ...]) -> None:
    with pytest.raises(HeadRouterError, match=r"needs weights \[2, d\] and bias \[2\]"):
        LinearProbeScorer(torch.zeros(weights), torch.zeros(bias), TYPES, FAMILIES)


def test_another_model_is_refused() -> None:
    model = tiny.build("qwen2_audio")
    batch = tiny.inputs("qwen2_audio", model, [[8]])
    with (
        pytest.raises(ProfileMismatchError, match="model type 'voxtral', the model is 'qwen2_audio'"),
        AudioTokenPruner(scorer=probe(metadata={"model_type": "voxtral"}))(model),
    ):
        pass
    with (
        pytest.raises(ProfileMismatchError, match=f"fitted on 5 channels, the decoder has {tiny.HIDDEN}"),
        AudioTokenPruner(scorer=probe())(model),
    ):
        model(**batch)
