"""Linear probes: planted directions are found, bad samples refused."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from headrouter_pl import AudioTokenPruner
from headrouter_pl.calibration.linear_probe import _Recorder, fit_linear_probe
from headrouter_pl.errors import HeadRouterError

torch.set_num_threads(1)

FAMILY = "qwen2_audio"
PLACE = {"semantic": "semantic", "sound": "acoustic"}


def planted(model: Any, direction: torch.Tensor, count: int = 12) -> list[dict[str, Any]]:
    """Batches of two clips: evidence is what points along the direction, of sounds what points against it."""
    made = []
    for seed in range(count):
        inputs = tiny.inputs(FAMILY, model, [[20], [15]], seed=seed)
        recorder = _Recorder()
        with torch.no_grad(), AudioTokenPruner(keep_tokens=1, layer=1, scorer=recorder)(model):
            model(**inputs)
        assert recorder.embeddings is not None
        assert recorder.audio_mask is not None
        evidence = []
        for row, sign in enumerate((1, -1)):
            along = sign * recorder.embeddings[row][recorder.audio_mask[row]] @ direction
            evidence.append([(int(i), int(i) + 1) for i in (along > along.median()).nonzero()[:, 0]])
        made.append({"inputs": inputs, "types": list(PLACE), "evidence": evidence})
    return made


def test_planted_directions_are_found() -> None:
    model = tiny.build(FAMILY)
    width = model.get_input_embeddings().weight.shape[1]
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
    data = planted(model, direction)
    probe = fit_linear_probe(model, data, types=PLACE, regularisation=1e-2, progress=False, data="noise")
    assert probe.metadata == {"model_type": FAMILY, "samples": "semantic 12, sound 12", "regularisation": "0.01",
                              "data": "noise"}  # fmt: skip
    assert probe.profile.families == ("semantic", "acoustic")
    # On clips that it was not fitted on, and not by chance: half of the tokens are evidence.
    right = []
    for batch in planted(model, direction, 16)[12:]:
        recorder = _Recorder()
        with torch.no_grad(), AudioTokenPruner(keep_tokens=1, layer=1, scorer=recorder)(model):
            model(**batch["inputs"])
        assert recorder.embeddings is not None
        for row in range(2):
            wanted = torch.zeros(recorder.embeddings.shape[1], dtype=torch.bool)
            for first, _ in batch["evidence"][row]:
                wanted[first] = True
            found = recorder.embeddings[row] @ probe.weights[row] + probe.bias[row] > 0
            inside = recorder.audio_mask[row]  # type: ignore[index]
            right.append((found == wanted)[inside].float().mean())
    assert torch.stack(right).mean() > 0.8


def test_the_draw_is_repeatable_and_the_model_left_as_it_was() -> None:
    model = tiny.build(FAMILY)
    model.train()
    data = planted(model, torch.ones(model.get_input_embeddings().weight.shape[1]), 3)
    first, second = (fit_linear_probe(model, data, types=PLACE, each=4, progress=False) for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    assert model.training


def test_bad_samples_are_refused() -> None:
    model = tiny.build(FAMILY)
    data = planted(model, torch.ones(model.get_input_embeddings().weight.shape[1]), 2)
    with pytest.raises(HeadRouterError, match="No sample of type voice"):
        fit_linear_probe(model, data, types={**PLACE, "voice": "acoustic"}, progress=False)
    with pytest.raises(HeadRouterError, match="type 'sound' is none of semantic"):
        fit_linear_probe(model, data, types={"semantic": "semantic", "voice": "acoustic"}, progress=False)
    with pytest.raises(HeadRouterError, match="batch 0: evidence is a list of spans for each sample, 2 here"):
        fit_linear_probe(model, [{**data[0], "evidence": None}], types=PLACE, progress=False)
    data[0]["evidence"][0] = [(3, 99)]
    with pytest.raises(HeadRouterError, match="batch 0, sample 0: evidence"):
        fit_linear_probe(model, data, types=PLACE, progress=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_are_not_numbers(value: float) -> None:
    model = tiny.build(FAMILY)
    data = planted(model, torch.ones(model.get_input_embeddings().weight.shape[1]), 2)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "projector" in name and "bias" in name)[0] = value
    with pytest.raises(HeadRouterError, match="batch 0, sample 0: what the projector gives is NaN or infinite"):
        fit_linear_probe(model, data, types=PLACE, progress=False)


def test_a_sample_without_audio_is_skipped() -> None:
    model = tiny.build(FAMILY)
    data = planted(model, torch.ones(model.get_input_embeddings().weight.shape[1]), 3)
    inputs = tiny.inputs(FAMILY, model, [[20], []])
    mixed = {"inputs": inputs, "types": list(PLACE), "evidence": [[(2, 9)], []]}
    probe = fit_linear_probe(model, [*data, mixed], types=PLACE, progress=False)
    assert probe.metadata["samples"] == "semantic 4, sound 3"


def test_a_model_that_cannot_be_pruned_at_the_first_layer() -> None:
    model = tiny.build("gemma3n")
    batches = []
    for seed in range(2):
        inputs = tiny.inputs("gemma3n", model, [[20], [15]], seed=seed)
        batches.append({"inputs": inputs, "types": list(PLACE), "evidence": [[(0, 1)], [(0, 1)]]})
    assert fit_linear_probe(model, batches, types=PLACE, progress=False).metadata["model_type"] == "gemma3n"
