"""benchmarks/question_first.py puts the question where it says."""

from __future__ import annotations

import pytest
import question_first
import torch
from tiny_pocket import build, make_processor, noise

from headrouter_pl.models.encoded import encoded_audio

torch.set_num_threads(1)

ASKED = "Which bell?"


@pytest.mark.parametrize(
    ("order", "before", "after"),
    [("after the audio", "", ASKED), ("before it", f"{ASKED}\n", ""), ("before and after", f"{ASKED}\n", ASKED)],
)
def test_the_question_stands_where_the_order_says(order: str, before: str, after: str) -> None:
    model, processor = build(), make_processor()
    prompter = question_first.OrderedPrompter(model, processor)
    prompter.order = order
    encoded = prompter.encode(noise(0, 2.0))
    inputs = prompter.inputs(encoded, ASKED)
    sounds = processor.audio_token * encoded.features.shape[1]
    wanted = processor.tokenizer(
        f"<|im_start|>user\n{before}{sounds}{after}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    )["input_ids"]
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == processor.tokenizer.decode(wanted)
    with encoded_audio(model), torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=2)
    assert output.shape[1] > inputs["input_ids"].shape[1]
