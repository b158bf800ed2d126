"""What is refused, and how."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from headrouter_pl import AudioTokenPruner, HeadProfile
from headrouter_pl.errors import (
    AudioMaskError,
    ConfigurationError,
    HeadRouterError,
    ProfileMismatchError,
    UnknownNameError,
    UnsupportedModelError,
)
from headrouter_pl.pruning.pruner import prune_layer
from headrouter_pl.scorers import Probe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_ratio": 0.0}, r"\(0, 1\], got 0\.0"),
        ({"keep_ratio": 1.2}, r"\(0, 1\], got 1\.2"),
        ({"keep_ratio": 0.5, "keep_tokens": 10}, "not both"),
        ({"keep_tokens": 0}, "at least 1, got 0"),
        ({"layer": 0}, "at least 1"),
        ({"tokenizer": object()}, "batch_decode"),
        ({"profile": "self"}, "HeadRouterCallback takes it"),
        ({"scorer": "fastv", "profile": "sharp"}, "settings of the scorer named 'headrouter'"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AudioTokenPruner(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": "headruoter"}, "Did you mean 'headrouter'"),
        ({"router": "joynt"}, "Did you mean 'joint'"),
        ({"profile": "generik"}, "Did you mean 'generic'"),
    ],
)
def test_names(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        AudioTokenPruner(**settings)


@pytest.mark.parametrize(
    ("layer", "name", "message"),
    [(4, "audioflamingo3", r"1\.\.3"), (1, "gemma3n", "layer >= 2"), (5, "gemma3n", "too high")],
)
def test_layers(layer: int, name: str, message: str) -> None:
    with (
        pytest.raises(HeadRouterError, match=message),
        AudioTokenPruner(layer=layer, scorer="stride")(tiny.build(name)),
    ):
        pass


def test_models(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"audioflamingo3, .*voxtral"), AudioTokenPruner()(nn.Linear(2, 2)):
        pass
    both = nn.ModuleList([model, tiny.build("audioflamingo3", seed=1)])
    with pytest.raises(UnsupportedModelError, match="2 audio language models"), AudioTokenPruner()(both):
        pass


def test_embeddings_without_an_audio_mask(model: Any) -> None:
    embeds = torch.randn(1, 12, model.config.text_config.hidden_size)
    with AudioTokenPruner(0.5, scorer="stride")(model), pytest.raises(AudioMaskError, match="audio_mask=mask"):
        model(inputs_embeds=embeds)


def test_audio_mask_of_another_length(model: Any) -> None:
    embeds = torch.randn(1, 12, model.config.text_config.hidden_size)
    mask = torch.ones(1, 9, dtype=torch.bool)
    with (
        AudioTokenPruner(0.5, scorer="stride")(model, audio_mask=mask),
        pytest.raises(AudioMaskError, match="12 positions"),
    ):
        model(inputs_embeds=embeds)


def test_audio_mask_of_another_length_beside_placeholders(model: Any) -> None:
    batch = tiny.inputs("audioflamingo3", model, [[20]])
    mask = tiny.audio_mask("audioflamingo3", model, batch["input_ids"])
    with (
        AudioTokenPruner(0.5, scorer="stride")(model, audio_mask=mask[:, 1:]),
        pytest.raises(AudioMaskError, match=f"{mask.shape[1]} positions"),
    ):
        model(**batch)
    with torch.no_grad(), AudioTokenPruner(0.5, scorer="stride")(model, audio_mask=mask):
        model.generate(**batch, max_new_tokens=3, use_cache=False)  # whose forwards grow longer


def test_placeholders_that_the_model_expands_itself() -> None:
    """Qwen2-Audio's legacy path makes the sequence longer than input_ids."""
    model = tiny.build("qwen2_audio")
    batch = tiny.inputs("qwen2_audio", model, [[20]])
    ids = batch["input_ids"]
    audio = tiny.audio_mask("qwen2_audio", model, ids)[0]
    first = audio.nonzero()[0, 0]
    keep = ~audio
    keep[first] = True
    legacy = {**batch, "input_ids": ids[:, keep], "attention_mask": batch["attention_mask"][:, keep]}
    with (
        torch.no_grad(),
        AudioTokenPruner(0.5, scorer="stride")(model),
        pytest.raises(AudioMaskError, match="Expand them beforehand"),
    ):
        model(**legacy)


def test_no_placeholder_id_in_the_config() -> None:
    model = tiny.build("voxtral")
    batch = tiny.inputs("voxtral", model, [[12]])
    model.config.audio_token_id = None
    with AudioTokenPruner(0.5, scorer="stride")(model), pytest.raises(AudioMaskError, match="placeholder"):
        model(**batch)


def _of(layers: tuple[int, ...], **settings: Any) -> HeadProfile:
    probed = 4 * len(layers)
    return HeadProfile("mine", weights=torch.full((3, probed), 1 / probed), layers=layers, **settings)


@pytest.mark.parametrize(
    ("settings", "layer"),
    [
        ({"scorer": "stride"}, 3),
        ({"scorer": "fastv"}, 3),
        ({"profile": "generic"}, 3),
        ({"profile": _of((0, 1, 2))}, 3),
        ({"profile": _of((3,))}, 4),
        ({"profile": _of((1,))}, 2),
        ({"profile": _of((0,))}, 2),
        ({"profile": _of((0, 4), pool=4)}, 2),
        ({"scorer": "scout"}, 2),
        ({"layer": 1}, 1),
    ],
)
def test_the_default_prune_layer(settings: dict[str, Any], layer: int) -> None:
    model = tiny.build("audioflamingo3", num_layers=6)
    with warnings.catch_warnings(), torch.no_grad(), AudioTokenPruner(0.5, **settings).engine(model) as report:
        warnings.simplefilter("ignore")  # no tokenizer
        model(**tiny.inputs("audioflamingo3", model, [[20]]))
    assert report.prefills[0].layer == layer


@pytest.mark.parametrize(
    ("lowest", "highest", "probe", "layer"),
    [
        (1, 5, None, 3),
        (2, 2, None, 2),
        (1, 1, None, 1),
        (4, 9, None, 4),
        (1, 5, Probe(pool=4), 2),
        (4, 9, Probe(pool=4), 4),
        (1, 1, Probe(layers=(0,), pool=4), 1),
        (4, 9, Probe(layers=(1,)), 4),
        (1, 5, Probe(layers=()), 3),
        (1, 5, Probe(layers=(-1, 0)), 2),
        (1, 3, Probe(layers=(3,)), 4),  # out of range, which is told as such
    ],
)
def test_the_default_prune_layer_and_what_the_model_allows(
    lowest: int, highest: int, probe: Probe | None, layer: int
) -> None:
    handle: Any = SimpleNamespace(lowest_layer=lowest, highest_layer=highest)
    assert prune_layer(handle, None, probe) == layer
    assert prune_layer(handle, 7, probe) == 7


def test_a_profile_of_the_last_layer(model: Any) -> None:
    with pytest.raises(HeadRouterError, match="layer=4 is out of range"):
        _enter(model, profile=_of((3,)))


def test_a_profile_measured_in_the_own_pass_at_or_above_the_prune_layer(model: Any) -> None:
    with pytest.raises(HeadRouterError, match=r"\[2\] .* below the prune layer 2: take layer >= 3"):
        _enter(model, profile=_of((0, 1, 2)), layer=2)


def test_a_profile_of_another_model(model: Any) -> None:
    other_type = HeadProfile("theirs", weights=torch.full((3, 4), 0.25), metadata={"model_type": "qwen2_audio"})
    with pytest.raises(ProfileMismatchError, match=r"'qwen2_audio'.*'audioflamingo3'"):
        _enter(model, profile=other_type)
    other_size = HeadProfile("wide", weights=torch.full((3, 9), 1 / 9), metadata={"model_type": "audioflamingo3"})
    with pytest.raises(ProfileMismatchError, match=r"\[3, 9\].*4 heads"):
        _enter(model, profile=other_size)
    too_deep = HeadProfile("deep", weights=torch.full((3, 4), 0.25), layers=(2,))
    with pytest.raises(HeadRouterError, match="below the prune layer"):
        _enter(model, profile=too_deep, layer=2)
    for layers in ((2,), (20,)):  # of a deeper model: it is the profile that is wrong, not K
        deeper = HeadProfile(
            "theirs", weights=torch.full((3, 4), 0.25), layers=layers,
            metadata={"model_type": "audioflamingo3", "num_layers": "28"},
        )  # fmt: skip
        for layer in (None, 2):
            with pytest.raises(ProfileMismatchError, match=r"Profile 'theirs' was fitted .* (has|num_layers) 4\."):
                _enter(model, profile=deeper, layer=layer)


def _enter(model: Any, **settings: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with AudioTokenPruner(**settings)(model):
            pass


def test_no_tokenizer_is_warned_of_once(model: Any) -> None:
    pruner = AudioTokenPruner(0.5)
    with pytest.warns(UserWarning, match="routing is by audio alone"), pruner(model):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pruner(model):
            pass


@pytest.mark.parametrize("use_cache", [True, False])
def test_nothing_to_prune_passes_through(model: Any, use_cache: bool) -> None:
    text = {"input_ids": torch.randint(8, 90, (2, 10)), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    one = tiny.inputs("audioflamingo3", model, [[1]])
    with torch.no_grad():
        for inputs in (text, one):
            expected = model(**inputs, use_cache=use_cache).logits
            with AudioTokenPruner(0.5, scorer="stride")(model) as report:
                assert torch.equal(model(**inputs, use_cache=use_cache).logits, expected)
            assert [len(sample.kept) for sample in report.samples] == [sample.seen for sample in report.samples]
