"""The argument that takes a model's KV cache, on the installed transformers and before its renaming."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import DynamicCache

from headrouter_pl.models.caches import cache_argument, cache_in


@pytest.mark.parametrize("name", ["qwen2_audio", "audioflamingo3", "gemma3n", "phi4_multimodal"])
def test_the_model_fills_the_cache_without_a_warning(name: str) -> None:
    model = tiny.build(name)
    batch, cache = tiny.inputs(name, model, [[12]]), DynamicCache()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(**batch, **{cache_argument(model): cache}, use_cache=True)
    assert cache.get_seq_length() == batch["input_ids"].shape[1]


def test_before_the_renaming() -> None:
    class Older(nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None) -> Any: ...

    assert cache_argument(Older()) == "past_key_values"


@pytest.mark.parametrize("given", [{"cache": 1}, {"past_key_values": 1}, {"cache": None, "past_key_values": 1}])
def test_either_name_is_read(given: dict[str, Any]) -> None:
    assert cache_in(given) == 1
    assert cache_in({}) is None
