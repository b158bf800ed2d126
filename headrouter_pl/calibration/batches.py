"""What a calibration does with a batch before and after the model: inputs, answers, evidence, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headrouter_pl.errors import HeadRouterError


def sample_keys(batch: Mapping[str, Any], name: str, count: int) -> list[str]:
    """What to call a batch's samples in errors: its ``keys``, or their numbers where it has none.

    Args:
        batch: Its ``keys`` may be a list, or the tensor that a collate function makes of numbers.
        name: What to call the batch.
        count: Its samples.

    Raises:
        HeadRouterError: If it has more or fewer keys than samples.
    """
    keys = batch.get("keys")
    if isinstance(keys, Tensor):
        keys = keys.tolist()
    if keys is None:
        keys = [""] * count
    if len(keys) != count:
        raise HeadRouterError(f"{name} has {count} samples and {len(keys)} keys.")
    return [str(key) or f"{name}, sample {number}" for number, key in enumerate(keys)]


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
    if not len(answers) == len(keys) == len(ids):
        raise HeadRouterError(
            f"There are {len(answers)} answers to {len(ids)} samples ({', '.join(keys)}); each needs one."
        )
    said: list[list[int]] = []
    for key, answer in zip(keys, answers, strict=True):
        if not isinstance(answer, str):
            raise HeadRouterError(
                f"{key}: the answer must be a text, got {answer!r}. Leave the sample out, or give it."
            )
        said.append(tokenizer(answer, add_special_tokens=False)["input_ids"])
        if not said[-1]:
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


def spans_of(batch: Mapping[str, Any], name: str, count: int) -> Sequence[Sequence[Sequence[int]] | None]:
    """A batch's ``evidence``: the spans of each sample.

    Args:
        batch: The batch.
        name: What to call it.
        count: Its samples.

    Raises:
        HeadRouterError: If it has none, or not those of every sample.
    """
    spans: Sequence[Sequence[Sequence[int]] | None] | None = batch.get("evidence")
    if spans is None or len(spans) != count:
        raise HeadRouterError(f"{name}: evidence is a list of spans for each sample, {count} here, got {spans!r}.")
    return spans


def evidence_mask(spans: Sequence[Sequence[int]] | None, length: int, key: str) -> Tensor:
    """Which of a sample's audio tokens are evidence.

    Args:
        spans: ``(start, end)`` of each, end exclusive, in whole tokens.
        length: Audio tokens of the sample.
        key: What to call the sample in errors.

    Returns:
        Bool tensor ``[length]``.

    Raises:
        HeadRouterError: If there is no span, or one is no stretch of the audio.
    """
    mask = torch.zeros(length, dtype=torch.bool)
    if spans is None or not len(spans):
        raise HeadRouterError(f"{key}: no evidence is given. Leave the sample out, or say where its evidence is.")
    for span in spans:
        try:
            start, end = map(float, span)
        except (TypeError, ValueError):
            raise HeadRouterError(f"{key}: evidence {span!r} is no (start, end) in audio tokens.") from None
        if not 0 <= start < end <= length:
            raise HeadRouterError(
                f"{key}: evidence {tuple(span)} is outside the audio, which has {length} tokens; expected (start, "
                "end) with 0 <= start < end."
            )
        if not (start.is_integer() and end.is_integer()):  # seconds, most likely
            raise HeadRouterError(f"{key}: evidence {tuple(span)} must be in whole audio tokens.")
        mask[int(start) : int(end)] = True
    return mask


def stretches(length: int, stretch: int) -> list[tuple[int, int]]:
    """Cuts ``length`` tokens into the fewest stretches of at most ``stretch``, as even as they can be."""
    count = -(-length // stretch)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))
