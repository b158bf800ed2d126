"""FLOPs and KV bytes by formula, against torch's counter and real caches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from headrouter_pl import AudioTokenPruner
from headrouter_pl.models import find_lalm
from headrouter_pl.pruning.cost import LayerCost

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No tokenizer")
        yield


def counted(name: str, attn: str, layer: int, **batch: Any) -> tuple[LayerCost, int, int]:
    model = tiny.build(name, attn_implementation=attn)
    handle = find_lalm(model)
    inputs = tiny.inputs(name, model, [[14]], **batch)
    with FlopCounterMode(display=False) as counter:
        handle.model(**inputs)
    name = next(name for name in counter.get_flop_counts() if name.endswith(f"language_model.layers.{layer}"))
    total = sum(counter.get_flop_counts()[name].values())
    return LayerCost.of(handle, layer), inputs["input_ids"].shape[1], total


@pytest.mark.parametrize("name", ["qwen2_audio", "voxtral", "granite_speech", "qwen3_asr"])
def test_flops_of_a_dense_layer(name: str) -> None:
    """Eager attention computes the whole square; half of it, with the diagonal, is causal."""
    cost, tokens, total = counted(name, "eager", 1)
    per_pair = 4 * tiny.HEADS * tiny.HEAD_DIM
    future = tokens * (tokens - 1) // 2
    assert cost.flops(tokens) == total - per_pair * future


@pytest.mark.parametrize("layer", [0, 1])
def test_flops_of_gemma3n(layer: int) -> None:
    """Its alternating updates multiply more than its weights, by less than one part in twenty."""
    cost, tokens, total = counted("gemma3n", "eager", layer)
    attention = 4 * tiny.HEADS * tiny.HEAD_DIM * tokens**2
    assert 0.95 < 2 * cost.weights * tokens / (total - attention) <= 1


def test_flops_of_a_mixture_count_the_experts_of_one_token() -> None:
    model = tiny.build("qwen3_omni_moe_thinker")
    config = model.config.text_config
    attention = sum(
        module.weight.numel()
        for module in tiny.layers("qwen3_omni_moe_thinker", model)[1].self_attn.modules()
        if isinstance(module, torch.nn.Linear)
    )
    router = config.num_experts * config.hidden_size
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    wanted = attention + router + config.num_experts_per_tok * expert
    assert LayerCost.of(find_lalm(model), 1).weights == wanted


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.none() | st.integers(1, 70))
def test_formula(tokens: int, window: int | None) -> None:
    cost = LayerCost(weights=11, heads_dim=3, kv_dim=4, window=window)
    pairs = sum(1 for i in range(tokens) for j in range(i + 1) if window is None or i - j < window)
    assert cost.flops(tokens) == 2 * 11 * tokens + 4 * 3 * pairs
    assert cost.kv_bytes(tokens, torch.bfloat16) == 2 * 4 * (tokens if window is None else min(tokens, window - 1))


def cache_bytes(output: Any) -> int:
    tensors = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(tensor.nbytes for tensor in tensors)


def test_weights_packed_to_four_bits_count_in_full() -> None:
    """Two weights a byte, as bitsandbytes keeps them."""
    model = tiny.build("qwen2_audio")
    layer = find_lalm(model).layers[0]
    before = LayerCost.of(find_lalm(model), 0)
    for module in layer.modules():
        if isinstance(module, torch.nn.Linear):
            packed = torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8)
            module.weight = torch.nn.Parameter(packed, requires_grad=False)
    assert LayerCost.of(find_lalm(model), 0) == before


def prefill(model: Any, batch: Any) -> Any:
    return model(**batch, use_cache=True)


# (family, layers, prune layer)
CACHED = [("qwen2_audio", 4, 1), ("qwen2_audio", 4, 3), ("gemma3n", 6, 2), ("gemma3n", 8, 4), ("phi4_multimodal", 4, 2)]


@pytest.mark.parametrize(("name", "num_layers", "layer"), CACHED)
@pytest.mark.parametrize(("ratio", "dtype"), [(0.2, torch.float32), (0.6, torch.bfloat16), (1.0, torch.float32)])
def test_kv_bytes_are_those_of_the_cache(
    name: str, num_layers: int, layer: int, ratio: float, dtype: torch.dtype
) -> None:
    model = tiny.build(name, num_layers=num_layers, dtype=dtype)
    batch = tiny.inputs(name, model, [[20], [9, 4], [2]])
    full = cache_bytes(prefill(model, batch))
    with AudioTokenPruner(ratio, scorer="stride", layer=layer)(model) as report:
        held = cache_bytes(prefill(model, batch))
    summary = report.summary()
    assert summary["kv_bytes_held"] == held
    assert summary["kv_bytes_saved"] == full - held
    assert (held < full) == (ratio < 1)
    with AudioTokenPruner(ratio, scorer="stride", layer=layer)(model) as report:
        model(**batch, use_cache=False)
    assert {**report.summary(), "kv_bytes_held": held, "kv_bytes_saved": full - held} == summary
    assert report.summary()["kv_bytes_held"] == report.summary()["kv_bytes_saved"] == 0


def test_kv_bytes_of_prompts_within_the_sliding_window() -> None:
    model = tiny.build("gemma3n")
    batch = tiny.inputs("gemma3n", model, [[]], text_before=3, text_after=3)
    handle = find_lalm(model)
    tokens = batch["input_ids"].shape[1]
    assert tokens < 9
    wanted = sum(LayerCost.of(handle, i).kv_bytes(tokens, torch.float32) for i in range(handle.num_layers))
    assert wanted == cache_bytes(prefill(model, batch))


def test_flops_of_a_pruned_prefill_equal_a_shorter_one() -> None:
    """Half of the audio from layer 2 on: each layer costs what it costs at the length it works on."""
    model = tiny.build("qwen2_audio", attn_implementation="eager")
    batch = tiny.inputs("qwen2_audio", model, [[20]])
    length = batch["input_ids"].shape[1]
    with AudioTokenPruner(0.5, scorer="stride", layer=2)(model) as report, FlopCounterMode(display=False) as counter:
        prefill(model, batch)
    counts = {name: sum(value.values()) for name, value in counter.get_flop_counts().items()}
    per_pair = 4 * tiny.HEADS * tiny.HEAD_DIM
    causal = 0
    for index, tokens in enumerate([length, length, length - 10, length - 10]):
        total = next(value for name, value in counts.items() if name.endswith(f"language_model.layers.{index}"))
        causal += total - per_pair * tokens * (tokens - 1) // 2
    assert report.summary()["flops"] == causal
    assert report.summary()["flops_unpruned"] == 4 * LayerCost.of(find_lalm(model), 0).flops(length)
    assert math.isclose(report.summary()["keep_ratio"], 0.5)
