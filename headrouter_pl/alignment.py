"""Teaches a projector the decoder's own vocabulary before the decoder is trained to listen.

The projector's outputs are read as if they were word embeddings: with connectionist temporal classification (CTC,
Graves et al. 2006) over the decoder's embedding matrix for what is said, and, averaged over a recording, with softmax
over the embeddings of label words ("woman", "Czech", "drum") for how it sounds. No layer of the decoder runs, so that a
step costs a hundredth of one of fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Utterance", "align_projector"]

_NEGATIVES = 256  # further tokens in each step's vocabulary, beside those of its texts
_ATTRIBUTE_WEIGHT = (
    0.5  # of all labels of an attribute; of one with hundreds of labels, less: they are learned by heart
)
_MANY_LABELS = 100
# Of a label's logit, where 1 is the length of an embedding. It does not train: a label must be heard in every frame,
# about as loud as a word, for the decoder to find it there.
_SCALE = 12.0
_FRAME_DROPOUT = 0.1
_CHANNEL_DROPOUT = 0.1
_NOISE = 0.2  # standard deviations of the channel


@dataclass(frozen=True, eq=False)
class Utterance:
    """One recording.

    Attributes:
        features: float16 ``[frames, width]``: the encoder's outputs.
        text: What is said; empty if it is not to be learned.
        labels: Attribute -> label, e.g. ``{"language": "Czech"}``.
    """

    features: np.ndarray
    text: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class _Heads(nn.Module):
    """What reads the projector's outputs; thrown away afterwards."""

    def __init__(self, embeddings: Tensor, labels: Mapping[str, Sequence[str]], ids: Mapping[str, list[int]]) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.norm = float(embeddings.std() * width**0.5)
        drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(0)).to(embeddings)
        self.blank = nn.Parameter(drawn * embeddings.std())
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.bias = nn.Parameter(torch.zeros(len(embeddings)))
        self.blank_bias = nn.Parameter(torch.zeros(1))
        self.directions: dict[str, Tensor] = {}
        for name, values in labels.items():
            rows = torch.stack([embeddings[ids[value]].mean(0) for value in values])
            self.directions[name] = F.normalize(rows - rows.mean(0), dim=-1)


def align_projector(
    projector: nn.Module,
    embeddings: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    utterances: Sequence[Utterance],
    *,
    steps: int = 1500,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Trains a projector in place.

    Args:
        projector: Maps ``[n, frames, width]`` to ``[n, frames, hidden]``; trained in float32.
        embeddings: The decoder's, ``[vocabulary, hidden]``; not changed.
        tokenizer: The decoder's.
        utterances: What to learn from.
        steps: Optimizer steps (AdamW, warm-up in a twentieth of them, then cosine).
        batch_size: Utterances in a step.
        learning_rate: Highest rate.
        seed: Of the order.
        progress: Show a progress bar.

    Returns:
        Means over the last hundred steps: ``"ctc"`` (nats a text) and, for each attribute, the share of right labels.
    """
    from transformers import get_cosine_schedule_with_warmup

    rng = np.random.default_rng(seed)
    device = next(projector.parameters()).device
    embeddings = embeddings.detach().to(device, torch.float32)
    labels = {name: sorted({u.labels[name] for u in utterances if name in u.labels}) for name in _names(utterances)}
    labels = {name: values for name, values in labels.items() if len(values) > 1}
    words = {value for values in labels.values() for value in values}
    heads = _Heads(embeddings, labels, {word: _ids(tokenizer, word) for word in words}).to(device)
    number = {name: {value: i for i, value in enumerate(values)} for name, values in labels.items()}
    targets = [_ids(tokenizer, u.text) if u.text else [] for u in utterances]
    # A text needs a frame for each token, and one more between two equal ones.
    targets = [ids if len(ids) * 1.5 + 1 <= len(u.features) else [] for ids, u in zip(targets, utterances, strict=True)]
    known = torch.tensor(sorted({i for ids in targets for i in ids}))

    sample = np.concatenate([utterances[i].features for i in rng.permutation(len(utterances))[:500]])
    spread = torch.from_numpy(sample.astype(np.float32).std(0)).to(device)
    order = np.argsort([len(u.features) for u in utterances])
    weights = [*projector.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    seen: list[dict[str, float]] = []
    projector.train()
    with tqdm(total=steps, desc="alignment", unit="step", disable=not progress) as bar:
        for _ in range(steps):
            # Neighbours in length, so that little is padding.
            start = int(rng.integers(max(1, len(order) - 4 * batch_size)))
            batch = rng.choice(order[start : start + 4 * batch_size], min(batch_size, len(order)), replace=False)
            loss, figures = _loss(
                projector, heads, embeddings, known, utterances, targets, number, batch.tolist(), spread, rng
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 5.0)
            optimizer.step()
            schedule.step()
            seen = [*seen[-99:], figures]
            bar.update()
            bar.set_postfix({name: f"{value:.2f}" for name, value in _mean(seen).items()}, refresh=False)
    _rescale(projector, embeddings, utterances)
    return _mean(seen)


def _names(utterances: Sequence[Utterance]) -> list[str]:
    return sorted({name for utterance in utterances for name in utterance.labels})


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


def _loss(
    projector: nn.Module,
    heads: _Heads,
    embeddings: Tensor,
    known: Tensor,
    utterances: Sequence[Utterance],
    targets: Sequence[list[int]],
    number: Mapping[str, Mapping[str, int]],
    batch: Sequence[int],
    spread: Tensor,
    rng: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    device = spread.device
    lengths = torch.tensor([len(utterances[i].features) for i in batch], device=device)
    features = [torch.from_numpy(utterances[i].features.astype(np.float32)) for i in batch]
    padded = nn.utils.rnn.pad_sequence(features, batch_first=True).to(device)
    n, frames, width = padded.shape
    noise = torch.from_numpy(rng.standard_normal(padded.shape, dtype=np.float32)).to(device) * spread * _NOISE
    kept = (rng.random((n, frames, 1)) > _FRAME_DROPOUT) & (rng.random((n, 1, width)) > _CHANNEL_DROPOUT)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        states = projector((padded + noise) * torch.from_numpy(kept).to(device))
    states = states.float()
    figures: dict[str, float] = {}
    loss = states.new_zeros(())
    if rows := [row for row, i in enumerate(batch) if targets[i]]:
        said = {token for row in rows for token in targets[batch[row]]}
        negatives = rng.choice(len(known), min(_NEGATIVES, len(known)), replace=False)
        vocabulary = torch.tensor(sorted(said | set(known[negatives].tolist())), device=device)
        column = {token: i + 1 for i, token in enumerate(vocabulary.tolist())}  # 0 is blank
        matrix = torch.cat([heads.blank, embeddings[vocabulary]]) * (heads.scale / heads.norm)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = states[rows] @ matrix.t()
        logits = logits.float() + torch.cat([heads.blank_bias, heads.bias[vocabulary]])
        ctc = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            torch.tensor([column[token] for row in rows for token in targets[batch[row]]], device=device),
            lengths[rows],
            torch.tensor([len(targets[batch[row]]) for row in rows], device=device),
            zero_infinity=True,
        )
        loss, figures["ctc"] = loss + ctc, ctc.item()
    inside = torch.arange(states.shape[1], device=device) < lengths[:, None]
    for name, values in number.items():
        if rows := [row for row, i in enumerate(batch) if name in utterances[i].labels]:
            right = torch.tensor([values[utterances[batch[row]].labels[name]] for row in rows], device=device)
            logits = states[rows] @ (heads.directions[name].t() * (_SCALE / heads.norm))
            here = inside[rows]
            each = F.cross_entropy(logits[here], right[:, None].expand(here.shape)[here])
            mean = (logits * here[..., None]).sum(1) / lengths[rows, None]
            weight = _ATTRIBUTE_WEIGHT * min(1.0, _MANY_LABELS / len(values))
            loss = loss + weight * (each + F.cross_entropy(mean, right))
            figures[name] = (mean.argmax(-1) == right).float().mean().item()
    return loss, figures


@torch.no_grad()
def _rescale(projector: nn.Module, embeddings: Tensor, utterances: Sequence[Utterance]) -> None:
    """Gives the outputs the embeddings' standard deviation, by the last layer: what the decoder is used to."""
    sample = torch.from_numpy(np.concatenate([u.features for u in utterances[:500]]).astype(np.float32))
    last = [module for module in projector.modules() if isinstance(module, nn.Linear)][-1]
    gain = embeddings.std() / projector(sample.to(embeddings.device)).std()
    last.weight.mul_(gain)
    if last.bias is not None:
        last.bias.mul_(gain)


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
