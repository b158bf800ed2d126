"""Masks for flash attention, as far as a CPU allows.

The two kernels are replaced by plain ones with their contract (keys and queries of a sequence packed side by side,
causal from the lower right corner). All around them is transformers' own flash path: mask preparation, unpadding, the
detection of packed sequences from position ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from reference import dropped_from, masked_from
from torch import Tensor

from headrouter_pl import AudioTokenPruner
from headrouter_pl.errors import HeadRouterError, UnsupportedModelError
from headrouter_pl.models import find_lalm

NAMES = ("qwen2_audio", "qwen3_asr", "qwen3_omni_moe_thinker", "qwen2_5_omni_thinker")


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention of one sequence, ``[S, H, d]``, aligned at the lower right corner."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    logits = torch.einsum("qhd,khd->hqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    rows, columns = torch.arange(len(query))[:, None] + len(key) - len(query), torch.arange(len(key))
    return torch.einsum("hqk,khd->qhd", logits.masked_fill(columns > rows, -torch.inf).softmax(-1), value)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, softmax_scale: float | None = None, **_: Any
) -> Tensor:
    assert causal or q.shape[1] == 1
    return torch.stack([_attend(*parts, softmax_scale) for parts in zip(q, k, v, strict=True)])


def _flash_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool = True,
    softmax_scale: float | None = None,
    **_: Any,
) -> Tensor:
    spans = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
    return torch.cat([_attend(q[a:b], k[c:d], v[c:d], softmax_scale) for a, b, c, d in spans])


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    utils = pytest.importorskip("transformers.modeling_flash_attention_utils")
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.masking_utils import flash_attention_mask

    process = utils._lazy_define_process_function(_flash_varlen)
    functions = (_flash, _flash_varlen, None, utils._pad_input, utils._unpad_input), (process, dict)
    monkeypatch.setattr(utils, "lazy_import_flash_attention", lambda *args, **kwargs: functions)
    AttentionInterface.register("flash_on_cpu", flash_attention_forward)
    AttentionMaskInterface.register("flash_on_cpu", flash_attention_mask)
    yield "flash_on_cpu"
    del AttentionInterface._global_mapping["flash_on_cpu"]
    del AttentionMaskInterface._global_mapping["flash_on_cpu"]


def _use(model: Any, attn: str) -> None:
    handle = find_lalm(model)
    handle.decoder.config._attn_implementation = attn


@pytest.mark.parametrize("scorer", ["random", "scout"])
@pytest.mark.parametrize("clips", [[[21]], [[20], [14], [6]]], ids=["one", "padded"])
@pytest.mark.parametrize("name", NAMES)
def test_flash(name: str, clips: list[list[int]], scorer: str, flash: str) -> None:
    model = tiny.build(name)
    handle, batch = find_lalm(model), tiny.inputs(name, model, clips)
    audio = tiny.audio_mask(name, model, batch["input_ids"])
    settings: dict[str, Any] = {
        "max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
    }  # fmt: skip
    with torch.no_grad():
        _use(model, flash)
        full = model(**batch).logits
        with AudioTokenPruner(0.4, layer=2, scorer=scorer)(model) as report:
            logits = model(**batch).logits
            generated = model.generate(**batch, **settings)
        _use(model, "sdpa")
        with AudioTokenPruner(0.4, layer=2, scorer=scorer)(model) as same:
            model(**batch)
        for one, other in zip(report.samples, same.samples, strict=False):  # report holds the generation's as well
            torch.testing.assert_close(one.importance, other.importance, atol=1e-6, rtol=1e-4)
        dropped = dropped_from(report, audio)
        with masked_from(handle.layers, 2, dropped):
            expected = model(**batch, use_cache=False).logits
            expected_generated = model.generate(**batch, **settings, use_cache=False)
    kept = batch["attention_mask"].bool() & ~dropped
    assert (logits - expected)[kept].abs().max() <= 1e-5
    assert (full - expected)[kept].abs().max() >= 1e-3
    assert torch.equal(generated.sequences, expected_generated.sequences)
    for one, other in zip(generated.logits, expected_generated.logits, strict=True):
        assert (one - other).abs().max() <= 2e-5


@pytest.mark.parametrize("clips", [[[21]], [[20], [14], [6]]], ids=["one", "padded"])
@pytest.mark.parametrize("name", NAMES)
def test_flash_with_evicted_keys(name: str, clips: list[list[int]], flash: str) -> None:
    model = tiny.build(name)
    batch = tiny.inputs(name, model, clips)
    settings: dict[str, Any] = {
        "max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
    }  # fmt: skip
    with torch.no_grad():
        _use(model, flash)
        with AudioTokenPruner(0.4, layer=2, scorer="random", evict_early=True)(model) as report:
            found = model.generate(**batch, **settings)
        _use(model, "sdpa")
        dropped = dropped_from(report, tiny.audio_mask(name, model, batch["input_ids"]))
        with masked_from(find_lalm(model).layers, 2, dropped, evicted=[dropped.shape[1]]):
            expected = model.generate(**batch, **settings, use_cache=False)
        with masked_from(find_lalm(model).layers, 2, dropped):
            late = model.generate(**batch, **settings, use_cache=False)
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert (one - other).abs().max() <= 2e-5
    assert (late.logits[1] - expected.logits[1]).abs().max() >= 1e-3


def test_sliding_window_is_refused(flash: str) -> None:
    model = tiny.build("gemma3n")
    batch = tiny.inputs("gemma3n", model, [[24]])
    _use(model, flash)
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedModelError, match="sdpa"),
        AudioTokenPruner(0.4, layer=2, scorer="random")(model),
    ):
        model(**batch)


def test_packed_samples_are_refused() -> None:
    model = tiny.build("qwen2_audio")
    batch = tiny.inputs("qwen2_audio", model, [[20]])
    length = batch["input_ids"].shape[1]
    positions = torch.cat((torch.arange(10), torch.arange(length - 10)))[None]
    del batch["attention_mask"]
    with (
        torch.no_grad(),
        AudioTokenPruner(0.4, layer=2, scorer="random")(model),
        pytest.raises(HeadRouterError, match="packed"),
    ):
        model(**batch, position_ids=positions)


@pytest.mark.gpu
@pytest.mark.parametrize("clips", [[[21]], [[20], [14], [6]]], ids=["one", "padded"])
def test_flash_on_gpu(clips: list[list[int]]) -> None:
    """The real kernel, in bf16: as close to the masked model as the unpruned kernel is to sdpa."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("flash_attn")
    model = tiny.build("qwen2_audio", attn_implementation="flash_attention_2", dtype=torch.bfloat16).cuda()
    batch = {k: v.cuda() for k, v in tiny.inputs("qwen2_audio", model, clips).items()}
    batch["input_features"] = batch["input_features"].bfloat16()
    handle, audio = find_lalm(model), tiny.audio_mask("qwen2_audio", model, batch["input_ids"])
    with torch.no_grad():
        with AudioTokenPruner(0.4, layer=2, scorer="random")(model) as report:
            logits = model(**batch).logits
        full = model(**batch).logits
        model.set_attn_implementation("sdpa")
        noise = (full - model(**batch).logits)[batch["attention_mask"].bool()].abs().max()
        dropped = dropped_from(report, audio.cpu()).cuda()
        with masked_from(handle.layers, 2, dropped):
            expected = model(**batch, use_cache=False).logits
    kept = batch["attention_mask"].bool() & ~dropped
    assert (logits - expected)[kept].abs().max() <= 4 * noise
