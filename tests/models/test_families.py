"""Finding the model in whatever holds it, and reading its sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from headrouter_pl.errors import UnsupportedModelError
from headrouter_pl.models import FAMILIES, find_lalm
from headrouter_pl.models.families import REFUSED

torch.set_num_threads(1)

NAMES = [name for name in tiny.FAMILIES if (name in FAMILIES or name == "qwen2_5_omni") and tiny.available(name)]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@cache
def model_of(name: str) -> Any:
    return tiny.build(name)


class Holder(nn.Module):
    """A LightningModule's shape: the model is an attribute, next to other modules and a config of its own."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()
        self.config = {"model_type": "mine"}
        for name, module in modules.items():
            setattr(self, name, module)


class Fake(nn.Module):
    """A module with a config, as transformers' models have."""

    def __init__(self, model_type: str, child: nn.Module | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type=model_type)
        self.child = nn.Linear(2, 2) if child is None else child


def test_every_supported_family_has_a_tiny_model() -> None:
    assert set(FAMILIES) == set(NAMES) - {"qwen2_5_omni"}
    assert all(FAMILIES[name].model_type == name for name in FAMILIES)
    assert not set(FAMILIES) & set(REFUSED)


@pytest.mark.parametrize("name", NAMES)
def test_found(name: str) -> None:
    model = model_of(name)
    core, decoder_layers = tiny.core(name, model), tiny.layers(name, model)
    listed = nn.ModuleDict({"other": nn.Linear(2, 2), "deep": nn.Sequential(Holder(lalm=model))})
    for held in (model, Holder(model=model), Holder(net=Holder(inner=model)), listed):
        handle = find_lalm(held)
        assert handle.model is core
        assert handle.layers is decoder_layers
        assert handle.family.model_type == core.config.model_type
        assert handle.audio_token_id == tiny.audio_token_id(name, model)
        assert handle.inputs[0] is core
    assert handle.lowest_layer == tiny.FAMILIES[name].min_prune_layer
    assert handle.num_layers == len(decoder_layers)


@pytest.mark.parametrize("name", NAMES)
def test_found_inside_peft(name: str) -> None:
    model = copy.deepcopy(model_of(name))
    core, decoder_layers = tiny.core(name, model), tiny.layers(name, model)
    plain = find_lalm(model)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "qkv_proj", "o_proj"]))
    for held in (lora, lora.base_model, Holder(model=lora)):
        handle = find_lalm(held)
        assert handle.model is core
        assert handle.layers is decoder_layers
        assert handle.inputs == plain.inputs
        for index in range(handle.num_layers):
            assert (handle.num_heads(index), handle.head_dim(index)) == ((tiny.HEADS, tiny.KV_HEADS), head_dim(name))


def head_dim(name: str) -> int:
    return int(tiny.layers(name, model_of(name))[0].self_attn.head_dim)


@pytest.mark.parametrize("name", NAMES)
def test_queries_and_keys_by_heads(name: str) -> None:
    """Shapes, and with the model's own rotary embedding the attention of the model."""
    model = model_of(name)
    handle = find_lalm(model)
    batch = tiny.inputs(name, model, [[14], [4]])
    seen: dict[tuple[str, int], Tensor] = {}
    hooks = []
    for index in range(handle.highest_layer):
        hooks += handle.hook_query_key(
            index, lambda i, states: seen.update({("q", i): states}), lambda i, states: seen.update({("k", i): states})
        )
    tiny.core(name, model)(**batch)
    for hook in hooks:
        hook.remove()
    shape = tuple(batch["input_ids"].shape)
    for index in range(handle.highest_layer):
        heads, kv_heads = handle.num_heads(index)
        assert (heads, kv_heads) == (tiny.HEADS, tiny.KV_HEADS)
        assert seen["q", index].shape == (*shape, heads, handle.head_dim(index))
        assert seen["k", index].shape == (*shape, kv_heads, handle.head_dim(index))
    seen.clear()
    tiny.core(name, model)(**batch)
    assert not seen


def test_layers_of_gemma3n() -> None:
    """Full, sliding, full, sliding, then two that share; the donors of shared keys are layers 2 and 3."""
    handle = find_lalm(model_of("gemma3n"))
    assert [handle.is_sliding(i) for i in range(6)] == [False, True] * 3
    assert [handle.shares_keys(i) for i in range(6)] == [False] * 4 + [True] * 2
    assert (handle.lowest_layer, handle.highest_layer) == (2, 2)
    plain = find_lalm(model_of("qwen2_audio"))
    assert (plain.lowest_layer, plain.highest_layer) == (1, 3)


def test_one_model_under_two_names() -> None:
    model = model_of("qwen2_audio")
    assert find_lalm(Holder(a=model, b=model)).model is model
    assert find_lalm(Holder(a=model, b=Holder(c=model))).model is model


def test_two_models() -> None:
    held = Holder(student=model_of("qwen2_audio"), teacher=Holder(net=model_of("voxtral")))
    with pytest.raises(UnsupportedModelError, match=r"Holder holds 2 audio language models \(student, teacher\.net\)"):
        find_lalm(held)


def test_found_behind_torch_compile() -> None:
    """The wrapper forwards attributes, but has no ``generate`` of its own for the pruner to wrap."""
    model = model_of("qwen2_audio")
    for held in (torch.compile(model), Holder(model=torch.compile(model)), Holder(a=model, b=torch.compile(model))):
        assert find_lalm(held).model is model


def test_found_when_compiled_in_place() -> None:
    model = tiny.build("qwen2_audio")
    model.compile()
    assert find_lalm(Holder(model=model)).model is model


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_with_a_reason(model_type: str) -> None:
    for held in (Fake(model_type), Holder(model=Fake("wrapper", Fake(model_type, Fake("whisper"))))):
        with pytest.raises(UnsupportedModelError) as caught:
            find_lalm(held)
        message = str(caught.value)
        assert f"Fake (model_type {model_type!r}) cannot be pruned: {REFUSED[model_type]}." in message
        assert all(name in message for name in FAMILIES)


@pytest.mark.parametrize("name", ["gemma4", "gemma4_unified", "muse_spark"])
def test_families_that_are_not_supported(name: str) -> None:
    if name in FAMILIES or not tiny.available(name):
        pytest.skip("supported by now, or not in the installed transformers")
    with pytest.raises(UnsupportedModelError, match=f"it holds .*model_type '{name}'"):
        find_lalm(tiny.build(name))


def test_unknown() -> None:
    with pytest.raises(UnsupportedModelError, match=r"No supported audio .* in Holder; it holds .*'whisper'") as caught:
        find_lalm(Holder(model=Fake("whisper")))
    assert f"Supported model types: {', '.join(sorted(FAMILIES))}." in str(caught.value)
    with pytest.raises(
        UnsupportedModelError, match=r"Linear holds no Hugging Face model\. Supported model types: audiofl"
    ):
        find_lalm(nn.Linear(2, 2))


def test_a_supported_type_without_its_decoder() -> None:
    """The encoder alone, or a module that only carries the config."""
    with pytest.raises(UnsupportedModelError, match=r"Fake \(model_type 'qwen2_audio'\)"):
        find_lalm(Fake("qwen2_audio"))
    with pytest.raises(UnsupportedModelError, match="No supported audio language model in Qwen2AudioEncoder"):
        find_lalm(model_of("qwen2_audio").model.audio_tower)


def test_a_holder_that_carries_the_config_is_not_the_model() -> None:
    for name in ("qwen2_audio", "phi4_multimodal"):
        held = Holder(model=model_of(name))
        held.config = model_of(name).config
        assert find_lalm(held).model is model_of(name)


def test_a_config_without_a_placeholder() -> None:
    model = copy.deepcopy(model_of("qwen2_audio"))
    model.config.audio_token_id = None
    assert find_lalm(model).audio_token_id is None


@pytest.mark.parametrize(("name", "window"), [("phi4_multimodal", 16), ("audioflamingo3", None), ("gemma3n", 10)])
def test_windows_that_the_config_alone_tells(name: str, window: int | None) -> None:
    """Attention of Phi and Mistral reads them there; that of Qwen has its own, None where the config's is unused."""
    model = tiny.build(name)
    handle = find_lalm(model)
    handle.attention(1).config.sliding_window = 16
    assert handle.window(1) == window
    assert handle.is_sliding(1) == (window is not None)
