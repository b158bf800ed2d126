"""Random models of published shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from narrow import narrow

from headrouter_pl import AudioTokenPruner
from headrouter_pl.errors import ConfigurationError, UnknownNameError
from headrouter_pl.models import find_lalm
from headrouter_pl.models.shapes import SHAPES, get_shape

torch.set_num_threads(1)

# Parameters in billions, as the model cards and papers give them: of the decoder without its embeddings, of the audio
# encoder, and of the whole model. The thinkers of Qwen2.5-Omni are published in one file with their talkers; their
# decoders are Qwen2.5-3B and Qwen2.5-7B.
PUBLISHED: dict[str, dict[str, float]] = {
    "pocket": {"decoder": 0.106, "encoder": 0.0206},  # SmolLM2-135M, Whisper-base
    "qwen2_5_omni_3b": {"decoder": 2.77, "encoder": 0.64},
    "qwen2_5_omni_7b": {"decoder": 6.53, "encoder": 0.64},
    "qwen2_audio_7b": {"encoder": 0.64, "whole": 8.4},
    "voxtral_3b": {"decoder": 3.21, "encoder": 0.64, "whole": 4.68},
    "audio_flamingo_3": {"decoder": 6.53, "encoder": 0.64, "whole": 8.27},
}


def sizes(model: Any) -> dict[str, int]:
    decoder = find_lalm(model).decoder
    return {
        "decoder": sum(p.numel() for p in decoder.parameters()) - decoder.embed_tokens.weight.numel(),
        "encoder": sum(p.numel() for name, p in model.named_parameters() if "audio_tower." in name),
        "whole": sum(p.numel() for p in model.parameters()),
    }


@pytest.mark.parametrize("name", SHAPES)
def test_as_many_weights_as_published(name: str) -> None:
    found = sizes(SHAPES[name].build(device="meta"))
    for part, billions in PUBLISHED[name].items():
        assert found[part] / 1e9 == pytest.approx(billions, rel=0.006), part


def test_the_pocket_decoder_to_the_last_weight() -> None:
    model = SHAPES["pocket"].build(device="meta")
    assert sum(p.numel() for p in find_lalm(model).decoder.parameters()) == 134_515_008


@pytest.mark.parametrize("name", SHAPES)
def test_a_slice_is_of_the_same_layers(name: str) -> None:
    shape = SHAPES[name]
    one, two = (shape.build(device="meta", num_layers=n, encoder_layers=n, dtype=torch.bfloat16) for n in (1, 2))
    whole = shape.build(device="meta")
    assert find_lalm(two).num_layers == 2
    assert two.dtype == torch.bfloat16
    for part, layers in (("decoder", find_lalm(whole).num_layers), ("encoder", shape.audio[shape.encoder_layers])):
        a, b, full = (sizes(model)[part] for model in (one, two, whole))
        assert b > a > 0
        assert full == a + (layers - 1) * (b - a)


@pytest.mark.parametrize(("seconds", "batch"), [(1.0, 2), (31.5, 1)])
@pytest.mark.parametrize("name", SHAPES)
def test_inputs_fit_and_are_pruned(name: str, seconds: float, batch: int) -> None:
    shape = narrow(name)
    model = shape.build()
    inputs = shape.inputs(model, seconds, batch=batch, before=3, after=5)
    whole = 30 * (1 + (seconds > 30)) if shape.mask is None else seconds
    tokens = int(whole * shape.tokens_per_second)
    handle = find_lalm(model)
    audio = (inputs["input_ids"] == handle.audio_token_id).sum(1).tolist()
    assert audio == pytest.approx([tokens] * batch, abs=1)
    assert inputs["input_ids"].shape == (batch, audio[0] + 8)
    with torch.inference_mode(), AudioTokenPruner(keep_tokens=7, layer=2, scorer="stride")(model) as report:
        logits = model(**inputs, logits_to_keep=1).logits
    assert logits.isfinite().all()
    assert [(sample.seen, len(sample.kept)) for sample in report.samples] == [(audio[0], 7)] * batch
    assert [sample.tokens_per_layer[1:3] for sample in report.samples] == [(audio[0], 7)] * batch


def test_weights_and_inputs_are_drawn_by_their_seed() -> None:
    shape = narrow("pocket")
    first, again, other = (shape.build(seed=seed) for seed in (0, 0, 1))
    weight = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.get_parameter(weight), again.get_parameter(weight))
    assert not torch.equal(first.get_parameter(weight), other.get_parameter(weight))
    drawn = [shape.inputs(first, 1.0, seed=seed)["input_features"] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_refused() -> None:
    shape = narrow("pocket")
    with pytest.raises(ConfigurationError, match=r"num_layers must be in 1\.\.4, got 5"):
        shape.build(num_layers=5)
    with pytest.raises(ConfigurationError, match=r"encoder_layers must be in 1\.\.1, got 0"):
        shape.build(encoder_layers=0)
    with pytest.raises(ConfigurationError, match=r"at least 0\.04 s, got 0\.01"):
        shape.inputs(shape.build(device="meta"), 0.01)
    with pytest.raises(UnknownNameError, match="Did you mean 'voxtral_3b'"):
        get_shape("voxtral3b")
