"""Teaches a projector the decoder's own vocabulary before the decoder is trained to listen.

The projector's outputs are read as if they were word embeddings: with connectionist temporal classification (CTC,
Graves et al. 2006) over the decoder's embedding matrix for what is said, and, averaged over a recording, with softmax
over the embeddings of label words ("woman", "Czech", "drum") for how it sounds. No layer of the decoder runs, so that a
step costs a hundredth of one of fine-tuning. The same loss trains an adapter of the encoder, see
:class:`headrouter_pl.alignment_module.AlignmentModule`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Alignment", "Utterance", "align_projector"]

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
        features: float16 array or tensor ``[frames, width]``: the encoder's outputs.
        text: What is said; empty if it is not to be learned.
        labels: Attribute -> label, e.g. ``{"language": "Czech"}``.
    """

    features: np.ndarray | Tensor
    text: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Alignment(nn.Module):
    """The loss of a projector's outputs, read as if they were word embeddings.

    Its own weights, a blank's embedding and biases, are thrown away afterwards.

    Args:
        embeddings: The decoder's, ``[vocabulary, hidden]``; not changed.
        tokenizer: The decoder's.
        labels: Attribute -> every label that it has; attributes of one label are left out.
        texts: All that may be said; each step's vocabulary has some of their tokens as wrong ones.
    """

    def __init__(
        self,
        embeddings: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        labels: Mapping[str, Iterable[str]],
        texts: Iterable[str],
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        embeddings = embeddings.detach().float()
        width = embeddings.shape[1]
        self.spread = float(embeddings.std())
        self.norm = self.spread * width**0.5
        drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(0)).to(embeddings)
        self.blank = nn.Parameter(drawn * embeddings.std())
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.bias = nn.Parameter(torch.zeros(len(embeddings)))
        self.blank_bias = nn.Parameter(torch.zeros(1))
        self.number: dict[str, dict[str, int]] = {}
        for name, values in sorted(labels.items()):
            ordered = sorted(set(values))
            if len(ordered) < 2:
                continue
            self.number[name] = {value: i for i, value in enumerate(ordered)}
            rows = torch.stack([embeddings[self._ids(value)].mean(0) for value in ordered])
            self.register_buffer(f"directions_{name}", F.normalize(rows - rows.mean(0), dim=-1), persistent=False)
        self.known = np.array(sorted({i for text in texts for i in self._ids(text)}), dtype=np.int64)

    def forward(
        self,
        states: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        embeddings: Tensor,
        rng: np.random.Generator,
    ) -> tuple[Tensor, dict[str, list[float]]]:
        """The loss of some recordings.

        Args:
            states: float32 ``[n, frames, hidden]``: the projector's outputs, padded on the right.
            lengths: int64 ``[n]``: frames of each.
            utterances: Of each, the text and labels; labels that :attr:`number` has not are skipped.
            embeddings: The decoder's, on the device of the states; no buffer, which DDP would send around in each step.
            rng: Draws the wrong tokens.

        Returns:
            The loss, ``[]``, and figures: ``"ctc"``, nats a token as one mean over texts, and for each attribute
            whether the label of each recording that has one is the likeliest (0 or 1).
        """
        figures: dict[str, list[float]] = {}
        # Each weight has a gradient, if only zero, in a batch without any text: DDP waits for all.
        loss = torch.stack([weight.sum() for weight in self.parameters()]).sum() * 0.0
        # A text needs a frame for each token, and one more between two equal ones.
        targets = [self._ids(utterance.text) if utterance.text else [] for utterance in utterances]
        frames = lengths.tolist()
        rows = [i for i, ids in enumerate(targets) if ids and len(ids) * 1.5 + 1 <= frames[i]]
        if rows:
            said = {token for row in rows for token in targets[row]}
            wrong = rng.choice(self.known, min(_NEGATIVES, len(self.known)), replace=False).tolist()
            vocabulary = torch.tensor(sorted(said.union(wrong)), device=states.device)
            column = {token: i + 1 for i, token in enumerate(vocabulary.tolist())}  # 0 is blank
            matrix = torch.cat([self.blank, embeddings[vocabulary].detach().float()]) * (self.scale / self.norm)
            with torch.autocast(states.device.type, dtype=torch.bfloat16):
                logits = states[rows] @ matrix.t()
            logits = logits.float() + torch.cat([self.blank_bias, self.bias[vocabulary]])
            ctc = F.ctc_loss(
                logits.log_softmax(-1).transpose(0, 1),
                torch.tensor([column[token] for row in rows for token in targets[row]], device=states.device),
                lengths[rows],
                torch.tensor([len(targets[row]) for row in rows], device=states.device),
                zero_infinity=True,
            )
            loss, figures["ctc"] = loss + ctc, [ctc.item()]
        inside = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        for name, values in self.number.items():
            rows = [i for i, utterance in enumerate(utterances) if utterance.labels.get(name) in values]
            if not rows:
                continue
            right = torch.tensor([values[utterances[row].labels[name]] for row in rows], device=states.device)
            directions: Tensor = self.get_buffer(f"directions_{name}")
            logits = states[rows] @ (directions.t() * (_SCALE / self.norm))
            here = inside[rows]
            each = F.cross_entropy(logits[here], right[:, None].expand(here.shape)[here])
            mean = (logits * here[..., None]).sum(1) / lengths[rows, None]
            weight = _ATTRIBUTE_WEIGHT * min(1.0, _MANY_LABELS / len(values))
            loss = loss + weight * (each + F.cross_entropy(mean, right))
            figures[name] = (mean.argmax(-1) == right).float().tolist()
        return loss, figures

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


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
    alignment: Alignment | None = None,
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
        alignment: A loss that goes on to be used: it trains too, and the outputs keep their scale. Otherwise one for
            these utterances, and at the end the outputs are given the embeddings' standard deviation.
        progress: Show a progress bar.

    Returns:
        Means over the last hundred steps: ``"ctc"`` (nats a token) and, for each attribute, the share of right labels.
    """
    from transformers import get_cosine_schedule_with_warmup

    rng = np.random.default_rng(seed)
    device = next(projector.parameters()).device
    embeddings = embeddings.detach().to(device)
    loss_of = alignment
    if loss_of is None:
        labels = {name: {u.labels[name] for u in utterances if name in u.labels} for name in _names(utterances)}
        loss_of = Alignment(embeddings, tokenizer, labels, {u.text for u in utterances} - {""}).to(device)
    sample = _joined([utterances[i] for i in rng.permutation(len(utterances))[:500]])
    spread = sample.to(device).std(0, correction=0)
    order = np.argsort([len(u.features) for u in utterances])
    weights = [*projector.parameters(), *loss_of.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    seen: list[dict[str, float]] = []
    projector.train()
    with tqdm(total=steps, desc="alignment", unit="step", disable=not progress) as bar:
        for _ in range(steps):
            # Neighbours in length, so that little is padding.
            start = int(rng.integers(max(1, len(order) - 4 * batch_size)))
            chosen = rng.choice(order[start : start + 4 * batch_size], min(batch_size, len(order)), replace=False)
            batch = [utterances[i] for i in chosen]
            features, lengths = pad_utterances(batch, device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                states = projector(disturb(features, spread, rng))
            loss, figures = loss_of(states.float(), lengths, batch, embeddings, rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 5.0)
            optimizer.step()
            schedule.step()
            seen = [*seen[-99:], {name: float(np.mean(values)) for name, values in figures.items()}]
            bar.update()
            bar.set_postfix({name: f"{value:.2f}" for name, value in _mean(seen).items()}, refresh=False)
    if alignment is None:
        with torch.no_grad():
            rescale(projector, loss_of.spread / float(projector(_joined(utterances[:500]).to(device)).std()))
    return _mean(seen)


def pad_utterances(utterances: Sequence[Utterance], device: torch.device) -> tuple[Tensor, Tensor]:
    """Their features, float32 ``[n, frames, width]``, padded on the right with zeros, and lengths, int64 ``[n]``."""
    rows = [torch.as_tensor(utterance.features, device=device).float() for utterance in utterances]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows], device=device)


def disturb(features: Tensor, spread: Tensor, rng: np.random.Generator) -> Tensor:
    """Features ``[n, frames, width]`` with noise, and without some frames and channels, as training hears them.

    Args:
        features: The encoder's outputs.
        spread: ``[width]``: the standard deviation of each channel.
        rng: Source of the noise.
    """
    n, frames, width = features.shape
    noise = torch.from_numpy(rng.standard_normal(features.shape, dtype=np.float32)).to(features.device)
    kept = (rng.random((n, frames, 1)) > _FRAME_DROPOUT) & (rng.random((n, 1, width)) > _CHANNEL_DROPOUT)
    return (features + noise * spread * _NOISE) * torch.from_numpy(kept).to(features.device)


def _names(utterances: Sequence[Utterance]) -> list[str]:
    return sorted({name for utterance in utterances for name in utterance.labels})


def _joined(utterances: Sequence[Utterance]) -> Tensor:
    """Their features one after another, float32 ``[frames, width]`` on the CPU."""
    return torch.cat([torch.as_tensor(utterance.features).float().cpu() for utterance in utterances])


@torch.no_grad()
def rescale(projector: nn.Module, gain: float) -> None:
    """Multiplies a projector's outputs, by its last linear layer."""
    last = [module for module in projector.modules() if isinstance(module, nn.Linear)][-1]
    last.weight.mul_(gain)
    if last.bias is not None:
        last.bias.mul_(gain)


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
