"""The tiny models: every one runs, hears its audio, and decodes the same with and without a cache."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

NAMES = list(tiny.FAMILIES)


def _clips(name: str) -> list[list[int]]:
    return [[14], [4, 3]] if tiny.FAMILIES[name].multi_clip else [[14], [7]]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> Any:
    if not tiny.available(request.param):
        pytest.skip("not in the installed transformers")
    return request.param


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@cache
def _model(name: str) -> Any:
    return tiny.build(name)


@cache
def _batch(name: str) -> dict[str, Tensor]:
    return tiny.inputs(name, _model(name), _clips(name))


@cache
def _logits(name: str) -> Any:
    return tiny.core(name, _model(name))(**_batch(name)).logits


def test_build_is_deterministic(name: str) -> None:
    again = tiny.build(name).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in _model(name).state_dict().items())
    assert not _model(name).training


def test_batch(name: str) -> None:
    family, batch = tiny.FAMILIES[name], _batch(name)
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    audio = tiny.audio_mask(name, _model(name), ids)
    assert not real.all()
    assert (ids[~real] == tiny.PAD).all()
    assert not audio[~real].any()
    step = family.fixed_tokens or 1
    limit = family.max_tokens or 99
    wanted = [sum(-(-min(n, limit) // step) * step for n in row) for row in _clips(name)]
    assert audio.sum(1).tolist() == wanted
    assert len(tiny.layers(name, _model(name))) == max(4, family.min_layers)


def test_sdpa_and_eager_agree(name: str) -> None:
    eager = tiny.build(name, attn_implementation="eager")
    real = _batch(name)["attention_mask"].bool()
    logits = tiny.core(name, eager)(**_batch(name)).logits
    assert _logits(name).isfinite().all()
    torch.testing.assert_close(logits[real], _logits(name)[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_a_row(name: str, side: str) -> None:
    family, model = tiny.FAMILIES[name], _model(name)
    if not family.padding_ok:
        pytest.skip(family.notes)
    batch = tiny.inputs(name, model, _clips(name), padding_side=side)
    logits = tiny.core(name, model)(**batch).logits
    for row in range(2):
        alone = tiny.core(name, model)(**tiny.single(name, model, batch, row)).logits[0]
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(alone, logits[row, real], atol=1e-4, rtol=0)


def test_greedy_with_and_without_cache(name: str) -> None:
    family, model = tiny.FAMILIES[name], tiny.core(name, _model(name))
    assert family.generate_ok
    width = _batch(name)["input_ids"].shape[1]
    cached = model.generate(**_batch(name), max_new_tokens=5)
    assert cached.shape == (2, width + 5)
    assert torch.equal(cached, model.generate(**_batch(name), max_new_tokens=5, use_cache=False))
    new = cached[:, width:]
    assert ((new >= tiny.TEXT_LOW) & (new < tiny.TEXT_HIGH)).all()
    if family.static_cache:
        static = model.generate(**_batch(name), max_new_tokens=5, cache_implementation="static")
        assert torch.equal(cached, static)


def test_audio_matters(name: str) -> None:
    batch = dict(_batch(name))
    audio = tiny.audio_mask(name, _model(name), batch["input_ids"])
    batch["attention_mask"] = batch["attention_mask"] * ~audio
    masked = tiny.core(name, _model(name))(**batch).logits
    assert (masked - _logits(name))[:, -1].abs().amax(1).min() > 1e-2
