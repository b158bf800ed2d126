"""What a calibration does with a batch before and after the model: inputs, answers, evidence, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headrouter_pl.errors import HeadRouterError


def append_answers(
    inputs: Mapping[str, Tensor], answers: Sequence[str], tokenizer: Any, keys: Sequence[str]
) -> dict[str, Tensor]:
    """Lets a batch of prompts go on with their answers, labelled.

    Args:
        inputs: ``input_ids`` and ``attention_mask`` ``[B, L]``, padded on the left, and what else the model takes.
        answers: One text a sample.
        tokenizer: A Hugging Face tokenizer.
        keys: What to call the samples in errors.

    Returns:
        The inputs with ``labels``, all ``[B, L + A]``; answers are padded on the right.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None or mask.shape != ids.shape or not bool(mask[:, -1].all()):
        raise HeadRouterError("Answers can follow prompts that are padded on the left, with an attention_mask [B, L].")
    said = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    for key, tokens in zip(keys, said, strict=True):
        if not tokens:
            raise HeadRouterError(f"{key}: the answer is empty. Leave the sample out, or give its answer.")
    width = max(map(len, said))
    tail = torch.tensor([tokens + [-100] * (width - len(tokens)) for tokens in said], device=ids.device)
    pad = tokenizer.pad_token_id or 0
    grown = {
        name: F.pad(value, (0, width)) if isinstance(value, Tensor) and value.shape == ids.shape else value
        for name, value in inputs.items()
    }
    grown["input_ids"] = torch.cat((ids, tail.masked_fill(tail == -100, pad)), 1)
    grown["attention_mask"] = torch.cat((mask, (tail != -100).to(mask.dtype)), 1)
    grown["labels"] = torch.cat((torch.full_like(ids, -100), tail), 1)
    return grown


def prepare_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch's inputs on the model's device, and floats in its dtype, as processors do not give them."""
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return {
        name: value
        if not isinstance(value, Tensor)
        else value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def check_attention(attention: Tensor, layers: Sequence[int], key: str) -> None:
    """Refuses attention ``[P, n]`` over the heads of ``layers`` that is not finite.

    Raises:
        HeadRouterError: It names the sample, as ``key``, and the layers.
    """
    bad = ~attention.isfinite().all(1)
    if bool(bad.any()):
        found = sorted({layers[int(index) * len(layers) // len(bad)] for index in bad.nonzero()[:, 0]})
        raise HeadRouterError(
            f"{key}: attention is NaN or infinite at layers {found}. Check the sample's audio and the model's dtype "
            "(float16 overflows where bfloat16 does not)."
        )


def check_rises(rises: Tensor, key: str) -> None:
    """Refuses rises ``[G]`` of an answer's negative log-likelihood that are not finite.

    Layers above the probed ones take part in them, so that attention may be finite where they are not.

    Raises:
        HeadRouterError: It names the sample, as ``key``.
    """
    if not bool(rises.isfinite().all()):
        raise HeadRouterError(
            f"{key}: the answer's negative log-likelihood is NaN or infinite. Check the sample's audio and answer, and "
            "the model's weights and dtype (float16 overflows where bfloat16 does not)."
        )


def check_answers(inputs: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuses a batch without an answer to every prompt in ``inputs["labels"]``.

    Raises:
        HeadRouterError: It names the sample.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.shape != inputs["input_ids"].shape:
        raise HeadRouterError("The method 'utility' reads the answers in inputs['labels'], [B, L] as input_ids.")
    for key, row in zip(keys, labels, strict=True):
        if bool((row[1:] == -100).all()):
            raise HeadRouterError(f"{key}: the answer is empty. Leave the sample out, or give its answer.")


def evidence_mask(spans: Sequence[Sequence[int]], length: int, key: str) -> Tensor:
    """Which of a sample's audio tokens are evidence.

    Args:
        spans: ``(start, end)`` of each, end exclusive.
        length: Audio tokens of the sample.
        key: What to call the sample in errors.

    Returns:
        Bool tensor ``[length]``.

    Raises:
        HeadRouterError: If there is no span, or one is outside the audio.
    """
    mask = torch.zeros(length, dtype=torch.bool)
    if not len(spans):
        raise HeadRouterError(f"{key}: no evidence is given. Leave the sample out, or say where its evidence is.")
    for span in spans:
        if len(span) != 2 or not 0 <= span[0] < span[1] <= length:
            raise HeadRouterError(
                f"{key}: evidence {tuple(span)} is outside the audio, which has {length} tokens; expected (start, "
                "end) with 0 <= start < end."
            )
        mask[int(span[0]) : int(span[1])] = True
    return mask


def stretches(length: int, stretch: int) -> list[tuple[int, int]]:
    """Cuts ``length`` tokens into the fewest stretches of at most ``stretch``, as even as they can be."""
    count = -(-length // stretch)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))
