"""Fits linear probes, the controls that read no attention, to batches with known evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headrouter_pl.calibration.batches import evidence_mask, prepare_inputs, sample_keys, spans_of
from headrouter_pl.errors import HeadRouterError
from headrouter_pl.models import find_lalm
from headrouter_pl.models.modes import evaluating
from headrouter_pl.profiles import TYPES
from headrouter_pl.pruning import AudioTokenPruner
from headrouter_pl.scorers import LinearProbeScorer, Scorer, ScoringInputs

__all__ = ["fit_linear_probe"]


class _Recorder(Scorer):
    """Remembers what the audio tokens are as they enter the decoder."""

    reads_embeddings = True
    embeddings: Tensor | None = None
    audio_mask: Tensor | None = None

    def score(self, inputs: ScoringInputs) -> Tensor:
        self.embeddings, self.audio_mask = inputs.embeddings, inputs.audio_mask
        return torch.zeros_like(inputs.audio_mask, dtype=torch.float32)


@torch.no_grad()
def fit_linear_probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    types: Mapping[str, str] = TYPES,
    regularisation: float = 1e-2,
    each: int = 64,
    seed: int = 0,
    data: str = "",
    progress: bool = True,
) -> LinearProbeScorer:
    """Fits a :class:`headrouter_pl.scorers.LinearProbeScorer`: for each type, which embeddings are evidence.

    Logistic regression (scikit-learn's), evidence and the rest weighing the same.

    Args:
        model: A supported model, or any module that holds one.
        batches: As for :class:`headrouter_pl.calibration.ProfileCalibrator`'s method ``"evidence"``.
        types: Names of the types, each with its family.
        regularisation: Weight of the L2 penalty, on standardised channels; the inverse of scikit-learn's ``C``.
        each: Tokens taken of a sample's evidence, and of its rest, at most; drawn at random.
        seed: Of the draw.
        data: What the batches are, for the metadata.
        progress: Show a progress bar.

    Raises:
        HeadRouterError: If a sample cannot be used, or a type has none.
    """
    from sklearn.linear_model import LogisticRegression
    from tqdm.auto import tqdm

    handle = find_lalm(model)
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in types}
    recorder = _Recorder()
    # One token from an early layer on: nothing above the embeddings is needed.
    pruner = AudioTokenPruner(keep_tokens=1, scorer=recorder)
    total = len(batches) if isinstance(batches, Sized) else None
    with evaluating(model):
        for number, batch in enumerate(tqdm(batches, total=total, desc="probing", unit="batch", disable=not progress)):
            given = {name: value for name, value in batch["inputs"].items() if name != "labels"}
            recorder.embeddings = None
            with pruner(model):
                handle.model(**prepare_inputs(handle.model, given), use_cache=False)
            if recorder.embeddings is None:
                continue  # a batch without audio
            assert recorder.audio_mask is not None
            keys = sample_keys(batch, f"batch {number}", len(batch["types"]))
            spans = spans_of(batch, f"batch {number}", len(keys))
            for row, (kind, key) in enumerate(zip(batch["types"], keys, strict=True)):
                if kind not in found:
                    raise HeadRouterError(f"{key}: type {kind!r} is none of {', '.join(types)}.")
                inside = recorder.audio_mask[row]
                embeddings = recorder.embeddings[row][inside].cpu().numpy()
                if not len(embeddings):
                    continue  # a sample without audio
                if not np.isfinite(embeddings).all():
                    raise HeadRouterError(
                        f"{key}: what the projector gives is NaN or infinite. Check the sample's audio and the model's "
                        "weights and dtype (float16 overflows where bfloat16 does not)."
                    )
                evidence = evidence_mask(spans[row], len(embeddings), key).numpy()
                drawn = [rng.permutation(np.flatnonzero(evidence == wanted))[:each] for wanted in (True, False)]
                if min(map(len, drawn)):
                    chosen = np.concatenate(drawn)
                    found[kind].append((embeddings[chosen], evidence[chosen]))
    if missing := [name for name, samples in found.items() if not samples]:
        raise HeadRouterError(
            f"No sample of type {', '.join(missing)} holds both evidence and other audio. Add data of the missing "
            "types, or name the types that there are."
        )
    weights, bias = [], []
    for samples in found.values():
        x = np.concatenate([rows for rows, _ in samples])
        y = np.concatenate([labels for _, labels in samples])
        mean, spread = x.mean(0), x.std(0) + 1e-6
        probe = LogisticRegression(C=1 / regularisation, class_weight="balanced", max_iter=1000)
        probe.fit((x - mean) / spread, y)
        weights.append(probe.coef_[0] / spread)
        bias.append(probe.intercept_[0] - float(weights[-1] @ mean))
    counts = ", ".join(f"{name} {len(samples)}" for name, samples in found.items())
    return LinearProbeScorer(
        torch.from_numpy(np.stack(weights)).float(),
        torch.tensor(bias, dtype=torch.float32),
        tuple(types),
        tuple(types.values()),
        metadata={
            "model_type": handle.family.model_type,
            "samples": counts,
            "regularisation": repr(regularisation),
            **({"data": data} if data else {}),
        },
    )
