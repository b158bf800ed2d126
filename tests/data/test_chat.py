"""Questions through processors that differ from the others: Voxtral's, which tokenizes whole conversations."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from headrouter_pl.data import AudioError, AudioPrompt, AudioPromptDataModule

RATE = 16_000


def records() -> list[AudioPrompt]:
    rng = np.random.default_rng(0)
    return [
        AudioPrompt(rng.normal(scale=0.1, size=int(seconds * RATE)).astype(np.float32), prompt, answer, key)
        for seconds, prompt, answer, key in (
            (3.0, "What is said?", "Paris, the capital", "a"),
            (40.0, "Who speaks here, and why?", "yes", "b"),
        )
    ]


class TestVoxtral:
    """With mistral-common's own vocabulary, of which the audio section is written here as Voxtral's is."""

    @pytest.fixture(scope="class")
    def processor(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        mistral_common = pytest.importorskip("mistral_common")
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
        from transformers import VoxtralProcessor
        from transformers.tokenization_mistral_common import MistralCommonBackend

        source = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
        layout = json.loads(source.read_text(encoding="utf-8"))
        layout["config"]["version"] = "v7"
        names = [str(getattr(token["token_str"], "value", token["token_str"]))
                 for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]  # fmt: skip
        names += [f"<SP_{i}>" for i in range(len(names), 24)]
        names[24:] = ["[AUDIO]", "[BEGIN_AUDIO]", "[TRANSCRIBE]"]
        layout["special_tokens"] = [
            {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
        ]
        layout["audio"] = {
            "sampling_rate": RATE, "frame_rate": 12.5, "chunk_length_s": 30.0,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        }  # fmt: skip
        folder = tmp_path_factory.mktemp("voxtral")
        (folder / "tekken.json").write_text(json.dumps(layout), encoding="utf-8")
        tokenizer = MistralCommonBackend.from_pretrained(str(folder))
        return VoxtralProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)

    def test_a_batch_is_that_of_the_questions_one_by_one(self, processor: Any) -> None:
        both = AudioPromptDataModule(processor).collate(records())["inputs"]
        assert both["input_features"].shape == (1 + 2, 128, 3000)  # 30 s windows
        assert (both["input_ids"] == processor.audio_token_id).sum(1).tolist() == [375, 750]
        start = 0
        for row, record in enumerate(records()):
            (one,) = [AudioPromptDataModule(processor).collate([record])["inputs"]]
            there = both["attention_mask"][row].bool()
            assert there.tolist() == sorted(there.tolist())  # padded on the left
            assert torch.equal(both["input_ids"][row][there], one["input_ids"][0])
            windows = len(one["input_features"])
            assert torch.equal(both["input_features"][start : start + windows], one["input_features"])
            start += windows
        assert processor.tokenizer.decode(both["input_ids"][0][-8:]).endswith("What is said?[/INST]")

    def test_labels_are_the_answers(self, processor: Any) -> None:
        data = AudioPromptDataModule(processor)
        prompts, inputs = data.collate(records())["inputs"], data.collate_train(records())["inputs"]
        assert torch.equal(inputs["input_features"], prompts["input_features"])
        for row, record in enumerate(records()):
            labelled = inputs["labels"][row] != -100
            answer = inputs["labels"][row][labelled]
            assert processor.tokenizer.decode(answer, skip_special_tokens=True) == record.answer
            assert answer[-1] == processor.tokenizer.eos_token_id
            there = inputs["attention_mask"][row].bool()
            before = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
            assert torch.equal(inputs["input_ids"][row][there], torch.cat((before, answer)))
            assert labelled.tolist() == sorted(labelled.tolist())


def test_an_extractor_by_its_other_name() -> None:
    """Phi-4-Multimodal's processor calls it ``audio_processor``."""
    processor = SimpleNamespace(audio_processor=WhisperFeatureExtractor(feature_size=80), tokenizer=None)
    assert AudioPromptDataModule(processor).sampling_rate == RATE  # type: ignore[arg-type]


def test_a_template_that_leaves_out_the_audio_is_refused() -> None:
    import tiny_pocket

    template = "{%- for message in messages -%}{{ message['content'][-1]['text'] }}{%- endfor -%}"
    data = AudioPromptDataModule(tiny_pocket.make_processor(template))
    with pytest.raises(AudioError, match=r"chat template of AudioFlamingo3Processor leaves out the audio of 'a'"):
        data.collate([AudioPrompt(np.ones(RATE, np.float32), "w40", key="a")])
