"""The text of the question, read off token ids by a fake tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from headrouter_pl.pruning.layout import TokenLayout
from headrouter_pl.pruning.prompts import PromptReader

AUDIO, PAD = "<audio>", "<pad>"
SPECIAL = {AUDIO, PAD, "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|audio_eos|>"}


class FakeTokenizer:
    """One token per item of a prompt; the ids are numbers of a growing table."""

    def __init__(self) -> None:
        self.table: list[str] = []
        self.decoded: list[list[int]] = []

    def encode(self, prompts: Sequence[Sequence[str]], side: str = "left") -> tuple[torch.Tensor, TokenLayout]:
        width = max(map(len, prompts))
        rows = []
        for prompt in prompts:
            padding = [PAD] * (width - len(prompt))
            rows.append([*padding, *prompt] if side == "left" else [*prompt, *padding])
        ids = torch.tensor([[self._id(token) for token in row] for row in rows])
        audio = torch.tensor([[token == AUDIO for token in row] for row in rows])
        attended = torch.tensor([[token != PAD for token in row] for row in rows])
        return ids, TokenLayout.build(audio, attention_mask=attended)

    def _id(self, token: str) -> int:
        if token not in self.table:
            self.table.append(token)
        return self.table.index(token)

    def batch_decode(self, sequences: Sequence[Any], *, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        self.decoded += sequences
        return ["".join(self.table[i] for i in row if self.table[i] not in SPECIAL) for row in sequences]


def read(*prompts: Sequence[str], side: str = "left") -> list[str]:
    tokenizer = FakeTokenizer()
    return PromptReader(tokenizer).read(*tokenizer.encode(prompts, side))


SYSTEM = ["<|im_start|>", "system\n", "You are a helpful", " assistant.", "<|im_end|>", "\n"]
CHATML_END = ["<|im_end|>", "\n", "<|im_start|>", "assistant\n"]


def test_the_question_is_what_follows_the_audio() -> None:
    prompt = [
        *SYSTEM,
        "<|im_start|>",
        "user\n",
        "Listen: ",
        AUDIO,
        AUDIO,
        "<|audio_eos|>",
        "\nWhat is",
        " said?",
        *CHATML_END,
    ]
    assert read(prompt) == ["What is said?"]


@pytest.mark.parametrize(
    "ending",
    [
        CHATML_END,
        ["<end_of_turn>", "\n", "<start_of_turn>", "model\n"],
        ["\n", "ASSISTANT:"],
        ["\nAssistant", " :\n"],
        [],
    ],
)
def test_turn_headers_are_stripped(ending: list[str]) -> None:
    assert read([AUDIO, "What is\nsaid?", *ending]) == ["What is\nsaid?"]


@pytest.mark.parametrize(
    "question",
    ["Is the speaker a human?", "Which model is this?", "Describe the\nassistant in the car", "The user: who?"],
)
def test_words_of_the_question_stay(question: str) -> None:
    assert read([AUDIO, question, *CHATML_END]) == [question]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_question_before_the_audio(side: str) -> None:
    before = ["<|im_start|>", "user\n", "What is said?", AUDIO, AUDIO, *CHATML_END]
    after = [AUDIO, "Is it raining?"]
    assert read(before, after, side=side) == ["What is said?", "Is it raining?"]


def test_the_whole_prompt_holds_its_system_turn() -> None:
    (text,) = read([*SYSTEM, "<|im_start|>", "user\n", "Who?", AUDIO, *CHATML_END])
    assert text.split() == ["You", "are", "a", "helpful", "assistant.", "Who?"]


def test_audio_alone() -> None:
    assert read([AUDIO, AUDIO], [AUDIO, "\n"]) == ["", ""]


def test_padding_and_placeholders_are_not_decoded() -> None:
    tokenizer = FakeTokenizer()
    ids, layout = tokenizer.encode([["Who?", AUDIO, AUDIO], ["x", "y", AUDIO, AUDIO, "What?"]])
    PromptReader(tokenizer).read(ids, layout)
    shown = [[tokenizer.table[i] for i in row] for row in tokenizer.decoded]
    # The questions; a prompt without one shows its last token, then all of its text.
    assert shown == [[AUDIO], ["What?"], ["Who?"], ["x", "y", "What?"]]


def test_answers_are_not_read() -> None:
    tokenizer = FakeTokenizer()
    ids, _ = tokenizer.encode([[AUDIO, "What?", " Rain."]])
    layout = TokenLayout.build(torch.tensor([[True, False, False]]), labels=torch.tensor([[-100, -100, 5]]))
    assert PromptReader(tokenizer).read(ids, layout) == ["What?"]
