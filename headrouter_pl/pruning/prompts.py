"""The text of a prompt, as the prompt router wants it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from headrouter_pl.pruning.layout import TokenLayout


class Tokenizer(Protocol):
    """What a Hugging Face tokenizer or processor offers here."""

    def batch_decode(self, sequences: Sequence[Any], *, skip_special_tokens: bool) -> list[str]:
        """Turns lists of token ids into texts."""


# Turn headers of chat templates, which stay behind when their special tokens are skipped.
ROLES = re.compile(r"^\s*(system|user|assistant|model|human)\s*:?\s*$", re.IGNORECASE | re.MULTILINE)


class PromptReader:
    """Decodes the question of each sample.

    The question is the text that follows the audio; where nothing readable follows, all text of the prompt. System
    prompts, which stand before the audio, say nothing about the task and are left out by this.

    Args:
        tokenizer: A tokenizer or processor.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def read(self, input_ids: Tensor, layout: TokenLayout) -> list[str]:
        """Prompts of a batch.

        Args:
            input_ids: Long tensor ``[B, L]`` on the CPU.
            layout: Where its tokens are.
        """
        rows = zip(input_ids, layout.query_index, layout.query_valid, strict=True)
        prompts = self._decode([ids[index[valid]].tolist() for ids, index, valid in rows])
        if not all(prompts):
            whole = self._decode([ids[mask].tolist() for ids, mask in zip(input_ids, layout.prompt_mask, strict=True)])
            prompts = [question or text for question, text in zip(prompts, whole, strict=True)]
        return prompts

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        texts = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        return [ROLES.sub("", text).strip() for text in texts]
