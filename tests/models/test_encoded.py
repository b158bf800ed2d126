"""The encoder's outputs, computed beforehand, give the stock forward's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models import pocket
from headrouter_pl.models.encoded import EncodedAudio, encode_audio, encode_windows, encoded_audio

FAMILY = "audioflamingo3"
# Clips of two windows and of one; each row has one.
CLIPS = [[tiny.WINDOW_TOKENS + 9], [14]]


def encoded(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the encoder's outputs, the windows of each row joined."""
    features, mask = batch["input_features"], batch["input_features_mask"]
    rows = [encode_windows(model, features[:2], mask[:2]), encode_windows(model, features[2:], mask[2:])]
    return {
        **batch,
        "input_features": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "input_features_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True
        ),
    }


@pytest.mark.parametrize("lora", [False, True])
@torch.no_grad()
def test_logits_are_the_stock_forwards(lora: bool) -> None:
    model = tiny.build(FAMILY)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    model.double()  # both ways compute the same, in another order
    batch = tiny.inputs(FAMILY, model, CLIPS)
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    want = model(**batch).logits
    instead = encoded(model, batch)
    assert [int(n) for n in instead["input_features_mask"].sum(1)] == [row[0] for row in CLIPS]
    with encoded_audio(model):
        torch.testing.assert_close(model(**instead).logits, want, rtol=0, atol=1e-5)
        with pytest.raises(HeadRouterError, match="taken out already"):
            EncodedAudio(model)
        with pytest.raises(HeadRouterError, match="restore it to encode"):
            encode_windows(model, batch["input_features"], batch["input_features_mask"])
    assert torch.equal(model(**batch).logits, want)


def test_restored_after_an_error_and_twice() -> None:
    model = tiny.build(FAMILY)
    encoder = model.model.audio_tower
    with pytest.raises(ZeroDivisionError), encoded_audio(model) as taken:
        raise ZeroDivisionError
    taken.restore()
    assert model.model.audio_tower is encoder


def test_other_models_are_refused() -> None:
    with pytest.raises(HeadRouterError, match="Linear has no 'audio_tower'"):
        EncodedAudio(torch.nn.Linear(1, 1))


@pytest.mark.pocket
@pytest.mark.skipif(not Path(pocket.pocket_folder()).is_dir(), reason="the pocket model has not been assembled")
@torch.no_grad()
def test_pocket_model() -> None:
    model, processor = pocket.load_pocket(progress=False)
    audio = np.random.default_rng(0).normal(size=32 * 16_000 + 1234).astype(np.float32) * 0.1
    inputs = processor(text="<|im_start|>user\n<sound>What is said?", audio=audio)
    want = model(**inputs).logits
    features = encode_windows(model, inputs["input_features"], inputs["input_features_mask"])
    assert len(features) == int((inputs["input_ids"] == model.config.audio_token_id).sum())
    kept = encode_audio(model, processor, audio)
    assert (kept.dtype, kept.shape) == (np.float16, (len(features), 512))
    np.testing.assert_array_equal(kept, features.half().numpy())
    mask = torch.ones(1, len(features), dtype=torch.long)
    with encoded_audio(model):
        found = model(**{**inputs, "input_features": features[None], "input_features_mask": mask}).logits
        half = model(**{**inputs, "input_features": torch.from_numpy(kept)[None].float(), "input_features_mask": mask})
    torch.testing.assert_close(found, want, rtol=0, atol=1e-4)
    assert (half.logits - want).abs().max() < 0.2
