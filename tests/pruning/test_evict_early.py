"""What becomes of caches whose layers below K were left with the kept tokens; exactness is in test_exactness.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import strategies
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import dropped_from, masked_from
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from headrouter_pl import AudioTokenPruner, HeadRouterCallback
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models import find_lalm

torch.set_num_threads(1)

NAME = "audioflamingo3"
MAX_ERROR, MIN_EFFECT = 1e-5, 1e-3
BUILT = {name: tiny.build(name) for name in ("qwen2_audio", "gemma3n", "phi4_multimodal")}


def pruner(**settings: Any) -> AudioTokenPruner:
    return AudioTokenPruner(**{"keep_ratio": 0.4, "layer": 2, "scorer": "random", "evict_early": True, **settings})


def held(cache: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers if layer.keys is not None]


@torch.no_grad()
def step(model: Any, cache: Any, mask: Tensor, tokens: int = 1) -> tuple[Tensor, Tensor]:
    """Logits of further tokens, and the longer mask."""
    ids = torch.full((len(mask), tokens), 33)
    mask = torch.cat((mask, torch.ones_like(ids)), 1)
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits, mask


@torch.no_grad()
def expected_steps(name: str, model: Any, batch: dict[str, Tensor], report: Any, tokens: int, layer: int = 2) -> Tensor:
    """The same logits without a cache: the dropped keys masked in all layers for the further tokens."""
    length = batch["input_ids"].shape[1]
    more = torch.full((len(batch["input_ids"]), tokens), 33)
    longer = {
        "input_ids": torch.cat((batch["input_ids"], more), 1),
        "attention_mask": torch.cat((batch["attention_mask"], torch.ones_like(more)), 1),
    }
    dropped = dropped_from(report, tiny.audio_mask(name, model, batch["input_ids"]))
    with masked_from(find_lalm(model).layers, layer, dropped, evicted=[length]):
        logits: Tensor = model(**{**batch, **longer}, use_cache=False).logits
    return logits[:, -tokens:]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(list(BUILT)),
    clips=strategies.clips,
    side=st.sampled_from(["left", "right"]),
    ratio=st.floats(0.01, 0.99),
    layer=st.integers(1, 3),
    after=st.integers(1, 8),
    tokens=st.integers(1, 3),
    static=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_batch(
    name: str, clips: list[list[int]], side: str, ratio: float, layer: int, after: int, tokens: int, static: bool,
    seed: int,
) -> None:  # fmt: skip
    model = BUILT[name]
    batch = tiny.inputs(name, model, clips, padding_side=side, text_after=after, seed=seed)
    handle = find_lalm(model)
    layer = min(max(layer, handle.lowest_layer), handle.highest_layer)
    config = model.config.get_text_config()
    room = batch["input_ids"].shape[1] + tokens + 2
    cache = StaticCache(config, max_cache_len=room) if static else DynamicCache(config=config)
    with torch.no_grad(), pruner(keep_ratio=ratio, layer=layer)(model) as report:
        model(**batch, past_key_values=cache)
        found, _ = step(model, cache, batch["attention_mask"], tokens)
    expected = expected_steps(name, model, batch, report, tokens, layer)
    assert (found - expected).abs().max() <= MAX_ERROR


def test_all_layers_hold_the_kept_tokens(model: Any, batch: dict[str, Tensor]) -> None:
    """As the report counts them, and the kept ones' own keys."""
    with torch.no_grad():
        full = model(**batch, use_cache=True).past_key_values
        with pruner(evict_early=False)(model) as late:
            model(**batch, use_cache=True)
        with pruner()(model) as report:
            cache = model(**batch, use_cache=True).past_key_values
    assert len(set(held(cache))) == 1
    assert cache.get_seq_length() == batch["input_ids"].shape[1]  # what positions are counted from
    summary = report.summary()
    assert summary["kv_bytes_held"] == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert summary["kv_bytes_held"] < late.summary()["kv_bytes_held"]
    stays = ~dropped_from(report, tiny.audio_mask(NAME, model, batch["input_ids"]))[0]
    for part in ("keys", "values"):
        assert torch.equal(getattr(cache.layers[0], part)[0], getattr(full.layers[0], part)[0][:, stays])


def test_a_sample_that_drops_nothing_is_the_longest(model: Any) -> None:
    """No position leaves the caches then, but the other sample's dropped keys must not be seen."""
    batch = tiny.inputs(NAME, model, [[20], []])
    text = batch["input_ids"][1]
    text[batch["attention_mask"][1] == 0] = 40
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    with torch.no_grad(), pruner()(model) as report:
        cache = model(**batch, use_cache=True).past_key_values
        found, _ = step(model, cache, batch["attention_mask"], 2)
    assert set(held(cache)) == {batch["input_ids"].shape[1] + 2}
    assert (found - expected_steps(NAME, model, batch, report, 2)).abs().max() <= MAX_ERROR


@pytest.mark.parametrize("order", [[1, 0], [1, 1], [0, 0, 1, 1], [1]])
@pytest.mark.parametrize("copied", [False, True])
def test_samples_chosen_anew(model: Any, batch: dict[str, Tensor], order: list[int], copied: bool) -> None:
    index, mask = torch.tensor(order), batch["attention_mask"]
    with torch.no_grad(), pruner()(model):
        expected, _ = step(model, model(**batch, use_cache=True).past_key_values, mask)
        cache = model(**batch, use_cache=True).past_key_values
        cache = copy.deepcopy(cache) if copied else cache
        if len(order) == 2:
            cache.reorder_cache(index)
        else:
            cache.batch_select_indices(index)
        found, _ = step(model, cache, mask[index])
    assert (found - expected[index]).abs().max() <= MAX_ERROR


@pytest.mark.parametrize("static", [False, True])
def test_cropped_and_gone_on(model: Any, static: bool) -> None:
    """Behind the audio, into the prompt: what was cropped is forgotten in every layer."""
    batch = tiny.inputs(NAME, model, [[20]], text_after=6)
    cache = StaticCache(model.config.text_config, max_cache_len=64) if static else DynamicCache()
    with torch.no_grad(), pruner()(model) as report:
        model(**batch, past_key_values=cache)
        _, mask = step(model, cache, batch["attention_mask"], 3)
        cache.crop(-5)
        found, mask = step(model, cache, mask[:, :-5], 1)
        more, _ = step(model, cache, mask, 1)
    shorter = {**batch, **{name: batch[name][:, :-2] for name in ("input_ids", "attention_mask")}}
    expected = expected_steps(NAME, model, shorter, report, 2)
    # The token that stands in the prompt's place is decoded, and so hears what decoding hears.
    assert (torch.cat((found, more), 1) - expected).abs().max() <= MAX_ERROR


def _crop_and_go_on(model: Any, cache: Any, mask: Tensor, count: int) -> None:
    cache.crop(-count)
    step(model, cache, mask[:, :-count])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("count", [16, 21])
def test_cropped_into_the_audio(model: Any, count: int, static: bool) -> None:
    batch = tiny.inputs(NAME, model, [[20]], text_after=6)
    cache = StaticCache(model.config.text_config, max_cache_len=64) if static else DynamicCache()
    with torch.no_grad(), pruner()(model):
        model(**batch, past_key_values=cache)
        with pytest.raises(HeadRouterError, match="Prefill the prompt again"):
            _crop_and_go_on(model, cache, batch["attention_mask"], count)


def test_second_turn_on_one_cache() -> None:
    """More audio, on the cache of a first turn: it hears what is left of the first, and is itself left with less."""
    name, model = "qwen2_audio", BUILT["qwen2_audio"]
    first, second = tiny.inputs(name, model, [[21]]), tiny.inputs(name, model, [[16]], seed=5)
    ids = torch.cat((first["input_ids"], second["input_ids"]), 1)
    with torch.no_grad(), pruner()(model) as report:
        cache = model(**first, use_cache=True).past_key_values
        mask = torch.ones_like(ids)
        found = model(**{**second, "attention_mask": mask}, past_key_values=cache).logits
        last, _ = step(model, cache, mask)
    assert len(set(held(cache))) == 1
    ends = [first["input_ids"].shape[1], ids.shape[1]]
    dropped = tiny.audio_mask(name, model, ids)
    dropped[0, report.samples[0].kept] = False
    dropped[0, report.samples[1].kept + ends[0]] = False
    width = max(turn["input_features"].shape[-1] for turn in (first, second))
    audio = {
        key: torch.cat([nn.functional.pad(turn[key], (0, width - turn[key].shape[-1])) for turn in (first, second)])
        for key in ("input_features", "feature_attention_mask")
    }
    longer = torch.cat((ids, torch.tensor([[33]])), 1)
    layers = find_lalm(model).layers
    with torch.no_grad():
        with masked_from(layers, 2, dropped, evicted=ends):
            expected = model(input_ids=longer, **audio, use_cache=False).logits
        with masked_from(layers, 2, dropped):
            late = model(input_ids=longer, **audio, use_cache=False).logits
    visible = ~dropped[0, ends[0] :]
    assert (found[0] - expected[0, ends[0] : -1])[visible].abs().max() <= MAX_ERROR
    assert (last[0, -1] - expected[0, -1]).abs().max() <= MAX_ERROR
    assert (expected - late)[0, ends[0] : -1][visible].abs().max() >= MIN_EFFECT


def test_going_on_otherwise_is_refused(model: Any, batch: dict[str, Tensor]) -> None:
    for early in (True, False):
        with torch.no_grad(), pruner(evict_early=early)(model):
            cache = model(**batch, use_cache=True).past_key_values
        with pruner(evict_early=not early)(model), pytest.raises(HeadRouterError, match="inside the same"):
            step(model, copy.deepcopy(cache), batch["attention_mask"])
        with pytest.raises(HeadRouterError, match="evict_early=True" if early else "layer=2, which"):
            step(model, copy.deepcopy(cache), batch["attention_mask"])


def test_caches_that_cannot_are_refused(model: Any, batch: dict[str, Tensor]) -> None:
    from transformers.cache_utils import DynamicLayer

    class Other(DynamicLayer):
        pass

    other, offloaded = DynamicCache(), DynamicCache()
    other.layer_class_to_replicate = Other
    with torch.no_grad(), pruner()(model), pytest.raises(HeadRouterError, match="out of a Other"):
        model(**batch, past_key_values=other)
    hook = find_lalm(model).layers[1].register_forward_hook(lambda *_: setattr(offloaded, "offloading", True))
    with torch.no_grad(), pruner()(model), pytest.raises(HeadRouterError, match="that is offloaded"):
        model(**batch, past_key_values=offloaded)
    hook.remove()


def test_a_pruned_cache_that_was_reset(model: Any, batch: dict[str, Tensor]) -> None:
    cache = StaticCache(model.config.text_config, max_cache_len=64)
    with torch.no_grad(), pruner()(model):
        model(**batch, past_key_values=cache)
        cache.reset()
        assert int(cache.get_seq_length()) == 0
        found, _ = step(model, cache, batch["attention_mask"][:, :0], 3)
    expected = model(input_ids=torch.full((2, 3), 33), use_cache=False).logits
    assert (found - expected).abs().max() <= MAX_ERROR


def test_the_callback_takes_it() -> None:
    assert HeadRouterCallback(evict_early=True).pruner.evict_early
    assert not HeadRouterCallback().pruner.evict_early
