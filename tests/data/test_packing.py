"""Questions packed on one recording have the losses they have when asked apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AudioFlamingo3Processor, PreTrainedTokenizerFast, WhisperFeatureExtractor

from headrouter_pl.data.audio import AudioError
from headrouter_pl.data.audio_prompts import AudioPrompt, AudioPromptDataModule
from headrouter_pl.data.packing import PackedCollator, PackedSample
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models.encoded import encoded_audio
from headrouter_pl.models.pocket import AUDIO_TOKEN, CHAT_TEMPLATE

FAMILY = "audioflamingo3"
WORDS = "system You are a helpful AI assistant named SmolLM , trained by Hugging Face user What Who says is said ? two"
WIDTH = 32  # of the tiny encoder's outputs


def make_processor(template: str = CHAT_TEMPLATE) -> Any:
    """The pocket model's template over a vocabulary of whole words."""
    special = ["<|endoftext|>", "<unk>", "<|im_start|>", "<|im_end|>"]
    names = [*special, *dict.fromkeys(WORDS.split())]
    vocabulary = {name: i for i, name in enumerate(names)} | {AUDIO_TOKEN: tiny.AUDIO_ID}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=special[0],
        unk_token=special[1],
        bos_token=special[2],
        eos_token=special[3],
        extra_special_tokens={"audio_token": AUDIO_TOKEN},
    )
    extractor = WhisperFeatureExtractor(feature_size=tiny.MELS, return_attention_mask=True)
    return AudioFlamingo3Processor(extractor, tokenizer, chat_template=template)


def sample(frames: int, *questions: tuple[str, str], seed: int = 0) -> PackedSample:
    features = np.random.default_rng(seed).normal(size=(frames, WIDTH)).astype(np.float16)
    return PackedSample(features, list(questions), key=f"sample {seed}")


SAMPLES = [
    sample(11, ("What is said ?", "two helpful user"), ("Who says two ?", "You"), ("What ?", "two two"), seed=1),
    sample(5, ("Who is Hugging ?", "SmolLM Face"), seed=2),
    sample(7, ("Who ?", "AI"), ("Who ?", "AI"), seed=3),
]


def token_losses(model: Any, batch: dict[str, Any]) -> list[list[torch.Tensor]]:
    """Of each row, the losses of each answer's tokens."""
    inputs = batch["inputs"]
    with encoded_audio(model):
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    found = []
    for row, labels in zip(logits, inputs["labels"], strict=True):
        losses = torch.nn.functional.cross_entropy(row[:-1], labels[1:], reduction="none", ignore_index=-100)
        places = (labels[1:] != -100).nonzero()[:, 0]
        cuts = ((places.diff() > 1).nonzero()[:, 0] + 1).tolist()
        found.append(list(losses[places].tensor_split(cuts)))
    return found


@torch.no_grad()
def test_losses_are_those_of_asking_apart() -> None:
    model, collate = tiny.build(FAMILY), PackedCollator(make_processor())
    packed = token_losses(model, collate(SAMPLES))
    for row, whole in zip(packed, SAMPLES, strict=True):
        assert len(row) == len(whole.questions)
        for losses, question in zip(row, whole.questions, strict=True):
            batch = collate([PackedSample(whole.features, [question])])
            batch["inputs"].pop("position_ids")
            batch["inputs"].pop("attention_mask")  # one question is a plain row: no mask, no positions
            ((alone,),) = token_losses(model, batch)
            assert len(losses) == len(question[1].split()) + 1  # the end token too
            torch.testing.assert_close(losses, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_frames_left_out_are_frames_that_nothing_sees() -> None:
    """Given their positions, the frames that are there have the losses of all frames with the others masked."""
    model, collate = tiny.build(FAMILY), PackedCollator(make_processor())
    whole = SAMPLES[0]
    kept = np.array([0, 1, 4, 7, 10])
    batch = collate([whole])
    (audio,) = (batch["inputs"]["input_ids"][0] == tiny.AUDIO_ID).nonzero(as_tuple=True)
    gone = np.setdiff1d(np.arange(11), kept)
    unmasked = token_losses(model, batch)
    batch["inputs"]["attention_mask"][..., audio[gone]] = False
    batch["inputs"]["attention_mask"][:, :, audio[gone], audio[gone]] = True  # a row that sees nothing would be NaN
    (masked,) = token_losses(model, batch)
    part = PackedSample(whole.features[kept], whole.questions, positions=kept)
    (found,) = token_losses(model, collate([part]))
    for one, other, before in zip(found, masked, unmasked[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert (other - before).abs().max() > 1e-3
    (packed,) = token_losses(model, collate([PackedSample(whole.features[kept], whole.questions)]))
    assert (packed[0] - masked[0]).abs().max() > 1e-5  # the positions are what does it


@torch.no_grad()
def test_the_stock_loss_is_the_mean_over_all_answer_tokens() -> None:
    model, batch = tiny.build(FAMILY), PackedCollator(make_processor())(SAMPLES)
    losses = torch.cat([answer for row in token_losses(model, batch) for answer in row])
    with encoded_audio(model):
        assert float(model(**batch["inputs"]).loss) == pytest.approx(float(losses.mean()), abs=1e-5)


def test_gradients_are_finite_and_reach_the_projector() -> None:
    model, batch = tiny.build(FAMILY), PackedCollator(make_processor())(SAMPLES)
    with encoded_audio(model):
        model(**batch["inputs"]).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_ids_are_those_of_the_plain_data_module() -> None:
    processor = make_processor()
    batch = PackedCollator(processor)([sample(25, ("What is said ?", "two helpful"))])["inputs"]
    record = AudioPrompt(np.zeros(16_000, np.float32), "What is said ?", "two helpful")
    plain = AudioPromptDataModule(processor, allow_silence=True).collate_train([record])["inputs"]
    assert plain["input_ids"].tolist() == batch["input_ids"].tolist()
    assert plain["labels"].tolist() == batch["labels"].tolist()


def test_a_batch() -> None:
    collate = PackedCollator(make_processor())
    batch = collate(SAMPLES)
    inputs = batch["inputs"]
    assert batch["keys"] == ["sample 1", "sample 2", "sample 3"]
    assert batch["answers"][0] == ["two helpful user", "You", "two two"]
    lengths = [collate.length(len(s.features), s.questions) for s in SAMPLES]
    count, length = inputs["input_ids"].shape
    assert (count, length) == (3, max(lengths))
    assert inputs["attention_mask"].shape == (3, 1, length, length)
    assert inputs["attention_mask"].dtype == torch.bool
    assert inputs["attention_mask"].any(-1).all()
    assert inputs["input_features"].shape == (3, 11, WIDTH)
    assert inputs["input_features_mask"].sum(1).tolist() == [11, 5, 7]
    assert (inputs["input_ids"] == tiny.AUDIO_ID).sum(1).tolist() == [11, 5, 7]
    for row, size in enumerate(lengths):
        assert inputs["input_ids"][row, size:].unique().tolist() in ([], [0])
        assert (inputs["labels"][row, size:] == -100).all()
    assert inputs["labels"].unique().tolist()[0] == -100
    assert int((inputs["labels"] == 3).sum()) == sum(len(s.questions) for s in SAMPLES)  # each answer's end


def test_refusals() -> None:
    with pytest.raises(AudioError, match="without '<\\|im_end\\|>'"):
        PackedCollator(make_processor(CHAT_TEMPLATE.replace("<|im_end|>", "")))
    collate = PackedCollator(make_processor())
    with pytest.raises(AudioError, match="sample 0: no questions"):
        collate([sample(3)])
    for positions in ([0, 1], [0, 2, 2], [-1, 0, 1]):
        with pytest.raises(AudioError, match="must rise, one for each frame"):
            collate([PackedSample(sample(3).features, [("Who ?", "AI")], positions=np.array(positions))])
    with pytest.raises(HeadRouterError, match="one <sound> and a text"):
        collate([sample(3, ("What is <sound>?", "two"))])
