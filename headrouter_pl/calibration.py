"""Fits head-weight profiles to a model, from batches whose samples are labelled with their types."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrouter_pl import tensorfile
from headrouter_pl._version import __version__
from headrouter_pl.errors import ConfigurationError, HeadRouterError, unknown_name
from headrouter_pl.functional import log_attention, selectivity
from headrouter_pl.models import LalmHandle, find_lalm
from headrouter_pl.profiles import TYPES, HeadProfile, fingerprint
from headrouter_pl.pruning.measuring import DroppingEngine, Measured, ObservingEngine, measure_attention
from headrouter_pl.pruning.prompts import PromptReader, Tokenizer
from headrouter_pl.pruning.pruner import prune_layer
from headrouter_pl.pruning.report import PruningReport
from headrouter_pl.routers import JointRouter, PromptPrior, PromptRouter, Router
from headrouter_pl.scorers import Probe

__all__ = ["FITS", "METHODS", "CalibrationSums", "ProfileCalibrator", "SelfCalibration", "append_answers", "calibrate"]

METHODS = ("selectivity", "evidence", "utility")
"""What head weights are fitted to."""

FITS: Mapping[str, tuple[str, ...]] = {
    "selectivity": (),
    "evidence": ("positive", "signed", "mass"),
    "utility": ("positive", "signed"),
}
"""How they are fitted, for each method; the first is the default."""

MIN_BANDWIDTH = 1e-3
SELF_CALIBRATION_BATCHES = 8
"""Batches of a stage that ``profile="self"`` measures, where nothing else is said."""
_FLAT = 1e-10
_SAVE_SECONDS = 10.0  # sums are written no more often than this
_STATE_FORMAT = "headrouter-calibration-1"
_SUMS = ("samples", "selectivity", "selectivity_outer", "contrasts", "excess", "xx", "xy")


class CalibrationSums:
    r"""What a profile is fitted from: sums over samples, one row for each type. P is the number of probed heads.

    The sums add up over batches and over processes, and their size does not depend on the number of samples:
    ``samples`` ``[T]``, ``selectivity`` :math:`\sum s` ``[T, P]``, ``selectivity_outer`` :math:`\sum s s^T`
    ``[T, P, P]``; and over the samples with a contrast to learn from, ``contrasts`` ``[T]``, ``excess`` ``[T, P]``,
    ``xx`` ``[T, P, P]`` and ``xy`` ``[T, P]``.

    Args:
        types: Names of the types, each with its family.
        num_probed: P.
        fit: A name of :data:`FITS`, or None for weights by selectivity.

    Attributes:
        tensors: The sums by name, float64 on the CPU.
    """

    def __init__(self, types: Mapping[str, str], num_probed: int, fit: str | None = None) -> None:
        self.types = dict(types)
        self.fit = fit
        count, heads = len(types), num_probed
        shapes = ((count,), (count, heads), (count, heads, heads), (count,), (count, heads), (count, heads, heads),
                  (count, heads))  # fmt: skip
        used = _SUMS if fit else _SUMS[:3]
        self.tensors = {
            name: torch.zeros(shape, dtype=torch.float64) for name, shape in zip(_SUMS, shapes, strict=True)
            if name in used
        }  # fmt: skip

    def add(self, kind: str, attention: Tensor) -> Tensor:
        """Counts one sample in.

        Args:
            kind: Its type.
            attention: Float tensor ``[P, n]`` over its audio tokens.

        Returns:
            The same on the CPU in float64.
        """
        attention = attention.detach().cpu().double()
        found = selectivity(attention, torch.ones(1, attention.shape[1], dtype=torch.bool))
        row = list(self.types).index(kind)
        self.tensors["samples"][row] += 1
        self.tensors["selectivity"][row] += found
        self.tensors["selectivity_outer"][row] += found.outer(found)
        return attention

    def add_evidence(self, kind: str, attention: Tensor, evidence: Tensor) -> None:
        """Counts in where the evidence of a sample stands.

        Evidence and the rest weigh the same, however long they are. A sample that is evidence throughout, or of which
        nothing is, says nothing.

        Args:
            kind: Its type.
            attention: Float tensor ``[P, n]`` over its audio tokens.
            evidence: Bool tensor ``[n]``.
        """
        count = int(evidence.sum())
        if not 0 < count < len(evidence):
            return
        # Not torch.where of two numbers: its dtype is the default one, which Lightning sets to bfloat16 in bf16-true.
        weights = evidence.double() * (0.5 / count) + (~evidence).double() * (0.5 / (len(evidence) - count))
        attention = attention.double()
        excess = attention[:, evidence].sum(1) - count / len(evidence)
        self._regress(kind, self._features(attention), evidence.double(), weights, excess)

    def add_utility(self, kind: str, attention: Tensor, bounds: Sequence[tuple[int, int]], rises: Tensor) -> None:
        """Counts in what the stretches of a sample are worth; one stretch says nothing.

        Args:
            kind: Its type.
            attention: Float tensor ``[P, n]`` over its audio tokens.
            bounds: First token and first token behind, of each of G stretches.
            rises: Float tensor ``[G]``: rise of the answer's negative log-likelihood when the stretch is dropped.
        """
        if len(bounds) < 2:
            return
        features = self._features(attention.double())
        means = torch.stack([features[:, first:last].mean(1) for first, last in bounds], 1)
        weights = torch.full((len(bounds),), 1 / len(bounds), dtype=torch.float64)
        self._regress(kind, means, rises.detach().cpu().double(), weights, None)

    def _features(self, attention: Tensor) -> Tensor:
        if self.fit == "signed":
            return log_attention(attention, torch.ones(1, attention.shape[1], dtype=torch.bool))
        return attention * attention.shape[1]

    def _regress(self, kind: str, x: Tensor, y: Tensor, weights: Tensor, excess: Tensor | None) -> None:
        """Adds a sample's part of the normal equations, centred within the sample: only its own ranking matters."""
        x = x - (x * weights).sum(1, keepdim=True)
        y = y - (y * weights).sum()
        scale = (x.square() * weights).sum(1).mean()
        if not scale > _FLAT:  # no head tells one token from another, but by rounding
            return
        # One factor for all heads of a sample changes no ranking, and lets samples of any sharpness count the same.
        x = x / scale.sqrt()
        row = list(self.types).index(kind)
        self.tensors["contrasts"][row] += 1
        self.tensors["xx"][row] += (x * weights) @ x.T
        self.tensors["xy"][row] += (x * weights) @ y
        if excess is not None:
            self.tensors["excess"][row] += excess

    def profile(
        self,
        name: str,
        *,
        probe: Probe,
        metadata: Mapping[str, str],
        ridge: float = 1e-2,
        share: bool = False,
    ) -> HeadProfile:
        """Fits the profile.

        Args:
            name: What to call it.
            probe: What was measured, at which layers.
            metadata: How and on what it was fitted.
            ridge: Added to the diagonal of the normal equations, as a share of its mean.
            share: Whether a type without samples takes the mean of all, instead of being refused.

        Raises:
            HeadRouterError: If the samples do not suffice.
        """
        samples = self.tensors["samples"]
        counts = {kind: int(count) for kind, count in zip(self.types, samples.tolist(), strict=True)}
        listed = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        if not samples.sum() or (not share and not samples.all()):
            raise HeadRouterError(
                f"Calibration needs samples with audio of every type, got: {listed}. Add data of the missing types, or "
                "name the types that there are."
            )
        totals = self.tensors["selectivity"]
        pooled = totals.sum(0) / samples.sum()
        centroids = torch.where(samples[:, None] > 0, totals / samples.clamp(min=1)[:, None], pooled)
        bandwidth = self._bandwidth(centroids)
        if bandwidth is None and not share:
            raise HeadRouterError(f"Calibration needs two samples or more of every type, got: {listed}.")
        weights = self._weights(centroids, ridge)
        return HeadProfile(
            name,
            types=tuple(self.types),
            families=tuple(self.types.values()),
            weights=weights.float(),
            centroids=None if bandwidth is None else centroids.float(),
            bandwidth=1.0 if bandwidth is None else bandwidth,
            layers=probe.layers,
            queries=probe.queries,
            rotary=probe.rotary,
            pool=probe.pool,
            features="log" if self.fit == "signed" else "attention",
            metadata={**metadata, "samples": json.dumps(counts)},
        )

    def _bandwidth(self, centroids: Tensor) -> float | None:
        r"""Sigma of the gates: :math:`\sigma^2 = \mathrm{tr}(C^2) / \mathrm{tr}(C)`, C the covariance within types.

        For heads that vary alike and independently it is the variance of one head; heads that vary together count as
        fewer, so that many of them do not make the gates surer than they are.
        """
        samples = self.tensors["samples"]
        free = float(samples.sum() - (samples > 0).sum())
        if free < 1:
            return None
        means = samples[:, None, None] * centroids[:, :, None] * centroids[:, None, :]
        covariance = (self.tensors["selectivity_outer"] - means).sum(0) / free
        spread = float(covariance.diagonal().sum())
        if not spread > 0:
            return MIN_BANDWIDTH
        return max(MIN_BANDWIDTH, math.sqrt(float(covariance.square().sum()) / spread))

    def _weights(self, centroids: Tensor, ridge: float) -> Tensor:
        """One row a type, absolute values summing to one, so that types mix evenly."""
        if self.fit is None:
            rows = centroids + torch.finfo(torch.float32).eps  # heads that never select: the same weight on each
            return rows / rows.sum(1, keepdim=True)
        rows = torch.zeros_like(centroids)
        for row, kind in enumerate(self.types):
            count = float(self.tensors["contrasts"][row])
            if not count:
                raise HeadRouterError(
                    f"No sample of type {kind!r} tells heads apart: its evidence is all of the audio or none, or the "
                    "audio is one stretch. Give samples in which some of the audio matters and some does not."
                )
            if self.fit == "mass":
                found = (self.tensors["excess"][row] / count).clamp(min=0).numpy()
            else:
                found = _solve(self.tensors["xx"][row] / count, self.tensors["xy"][row] / count, ridge, self.fit)
            total = float(np.abs(found).sum())
            if not total > 0:
                raise HeadRouterError(
                    f"No head looks at what matters in samples of type {kind!r} more than by chance. Probe other "
                    "layers, or fit signed weights (fit='signed')."
                )
            rows[row] = torch.from_numpy(found / total)
        return rows


def _solve(xx: Tensor, xy: Tensor, ridge: float, fit: str) -> np.ndarray:
    """Ridge regression by its normal equations, of signed weights or of positive ones."""
    from scipy.linalg import cho_solve, cholesky, solve_triangular
    from scipy.optimize import nnls

    matrix = xx.numpy() + ridge * float(xx.diagonal().mean()) * np.eye(len(xx))
    lower = cholesky(matrix, lower=True)
    if fit == "signed":
        found: np.ndarray = cho_solve((lower, True), xy.numpy())
    else:
        found = nnls(lower.T, solve_triangular(lower, xy.numpy(), lower=True))[0]
    return found


class ProfileCalibrator:
    """Measures batch by batch what a profile is fitted from. The model's weights do not change.

    A batch is a mapping with ``inputs`` (what the model's forward takes, prompts with their audio), ``types`` (a name
    for each sample), and perhaps ``keys`` (what to call the samples in errors). The method ``"evidence"`` also reads
    ``evidence``: for each sample a list of ``(first, behind)`` in audio tokens. ``"utility"`` reads the answers in
    ``inputs["labels"]``, -100 elsewhere; see :func:`append_answers`.

    Args:
        model: A supported model, in evaluation mode, or any module that holds one.
        method: ``"selectivity"``: centroids and weights are the mean selectivity of heads (in the spirit of HeadRouter,
            arXiv 2604.23717). Ours: ``"evidence"``, weights that tell the tokens that the answer rests on from the
            others; ``"utility"``, weights that predict by how much the answer's negative log-likelihood rises when a
            stretch of audio is dropped.
        fit: For the latter two: ``"positive"``, non-negative least squares on attention; ``"signed"``, ridge regression
            on the logarithm of attention; for evidence also ``"mass"``, the mean attention on evidence above chance.
            ``"positive"`` if None.
        layer: The prune layer K that the profile is for; None for 2, or the lowest above it that the model allows.
        layers: The probed layers, below K; None for the one right below. In a scout pass they may lie anywhere, see
            :class:`headrouter_pl.scorers.Probe`, here and below.
        types: Names of the types, each with its family.
        queries: Whose attention is measured.
        rotary: Whether it is attention after the rotary embedding.
        pool: Audio tokens a group of a scout pass to measure it in; None for the model's own pass.
        smoothing: Neighbours on each side that scores are to be averaged over; it changes nothing that is fitted.
        stretch: Audio tokens of a stretch, at most, for ``"utility"``.
        ridge: Added to the diagonal of the normal equations, as a share of its mean.

    Attributes:
        sums: What was measured so far.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        method: str = "selectivity",
        fit: str | None = None,
        layer: int | None = None,
        layers: Sequence[int] | None = None,
        types: Mapping[str, str] = TYPES,
        queries: Literal["prompt", "last"] = "prompt",
        rotary: bool = False,
        pool: int | None = None,
        smoothing: int = 0,
        stretch: int = 25,
        ridge: float = 1e-2,
    ) -> None:
        check_settings(method, fit, types, stretch, ridge, smoothing)
        self.handle = find_lalm(model)
        self.method = method
        self.fit = fit if fit is not None else next(iter(FITS[method]), None)
        self.layer = prune_layer(self.handle, layer)
        self.probe = Probe(rotary, queries, layers=None if layers is None else tuple(sorted(layers)), pool=pool)
        self.layers = self.probe.resolve(self.layer, self.handle.num_layers)
        limit = self.layer if pool is None else self.handle.num_layers
        inside = bool(self.layers) and 0 <= self.layers[0] <= self.layers[-1] < limit
        if not inside or self.layer >= self.handle.num_layers:
            raise ConfigurationError(
                f"Probed layers {list(self.layers)} must lie below layer {limit}, and the prune layer {self.layer} "
                f"below the model's {self.handle.num_layers} layers."
            )
        self.probe = replace(self.probe, layers=self.layers)
        self.smoothing = smoothing
        heads = {self.handle.num_heads(index)[0] for index in self.layers}
        if len(heads) > 1 or len(set(self.layers)) < len(self.layers):
            raise ConfigurationError(f"Probed layers {list(self.layers)} must differ, and have as many heads each.")
        self.types = dict(types)
        self.stretch = stretch
        self.ridge = ridge
        self.sums = CalibrationSums(self.types, len(self.layers) * heads.pop(), self.fit)

    def configuration(self) -> dict[str, str]:
        """All that the sums depend on, and the model's fingerprint, as the profile's metadata keeps it."""
        settings = {
            **fingerprint(self.handle, self.layers),
            "method": self.method if self.fit is None else f"{self.method}, {self.fit}",
            "layer": str(self.layer),
            "probed_layers": json.dumps(self.layers),
            "queries": self.probe.queries,
            "rotary": json.dumps(self.probe.rotary),
            "pool": json.dumps(self.probe.pool),
            "smoothing": str(self.smoothing),
            "types": json.dumps(self.types),
            "version": __version__,
        }
        return {**settings, "stretch": str(self.stretch)} if self.method == "utility" else settings

    def update(self, batch: Mapping[str, Any], name: str = "batch") -> None:
        """Measures one batch.

        Args:
            batch: See above.
            name: What to call it in errors, where it has no ``keys``.

        Raises:
            HeadRouterError: If a sample cannot be used; it is named.
        """
        if not isinstance(batch, Mapping) or "inputs" not in batch or "types" not in batch:
            given = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise HeadRouterError(f"Calibration reads batches with 'inputs' and 'types', got {given}.")
        inputs, kinds = prepare_inputs(self.handle.model, batch["inputs"]), list(batch["types"])
        keys = [str(key) for key in batch.get("keys") or [f"{name}, sample {i}" for i in range(len(kinds))]]
        count = len(inputs["input_ids"])
        if len(kinds) != count or len(keys) != count:
            raise HeadRouterError(f"{name} has {count} samples, {len(kinds)} types and {len(keys)} keys.")
        for key, kind in zip(keys, kinds, strict=True):
            if kind not in self.types:
                raise HeadRouterError(f"{key}: type {kind!r} is none of {', '.join(self.types)}.")
        if self.method == "utility":
            _check_labels(inputs, keys)
        measured = measure_attention(self.handle, inputs, self.probe)
        if measured is None:
            return
        if len(measured.attention) != count:
            raise HeadRouterError(f"{name} has {count} samples, the model saw {len(measured.attention)}.")
        seen = measured.audio_mask.sum(1).tolist()
        attention = [measured.attention[row, :, : seen[row]] for row in range(count)]
        for key, values in zip(keys, attention, strict=True):
            check_attention(values, self.layers, key)
        rises: list[Tensor | None] = [None] * count
        evidence: list[Tensor | None] = [None] * count
        if self.method == "utility":
            rises = self._rises(inputs, seen)
        if self.method == "evidence":
            if "evidence" not in batch or len(batch["evidence"]) != count:
                raise HeadRouterError(f"{name}: the method 'evidence' reads a list of spans for each sample.")
            evidence = [
                evidence_mask(spans, length, key) if length else None
                for spans, length, key in zip(batch["evidence"], seen, keys, strict=True)
            ]
        for row, kind in enumerate(kinds):
            if not seen[row]:
                continue
            values = self.sums.add(kind, attention[row])
            if (mask := evidence[row]) is not None:
                self.sums.add_evidence(kind, values, mask)
            if (rise := rises[row]) is not None:
                self.sums.add_utility(kind, values, _stretches(seen[row], self.stretch), rise)

    def _rises(self, inputs: Mapping[str, Any], seen: Sequence[int]) -> list[Tensor | None]:
        """For each sample, by how much each of its stretches, dropped, raises the answer's NLL, ``[G]``."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        labels = inputs["labels"]
        engine = DroppingEngine(self.handle, self.layer)
        whole = engine.answer_nll(given, labels).cpu()
        bounds = [_stretches(length, self.stretch) if length else [] for length in seen]
        rises = [torch.zeros(len(found), dtype=torch.float32) for found in bounds]
        for number in range(max(map(len, bounds), default=0)):
            dropped = torch.zeros(len(seen), max(seen), dtype=torch.bool)
            for row, found in enumerate(bounds):
                if number < len(found):
                    dropped[row, slice(*found[number])] = True
            rise = engine.answer_nll(given, labels, dropped).cpu() - whole
            for row, found in enumerate(bounds):
                if number < len(found):
                    rises[row][number] = rise[row]
        return [found if len(found) else None for found in rises]

    def profile(self, name: str, data: str = "") -> HeadProfile:
        """Fits the profile to what was measured.

        Args:
            name: What to call it.
            data: What it was measured on, for its metadata.
        """
        metadata = {**self.configuration(), **({"data": data} if data else {})}
        if self.fit in ("positive", "signed"):
            metadata["ridge"] = repr(self.ridge)
        profile = self.sums.profile(name, probe=self.probe, metadata=metadata, ridge=self.ridge)
        return replace(profile, smoothing=self.smoothing)

    def save_state(self, path: str | Path, done: int, data: str = "") -> None:
        """Writes what was measured so far; the file is replaced as a whole.

        Args:
            path: Where to.
            done: Batches measured.
            data: What is measured on; another does not go on from this file.

        Raises:
            HeadRouterError: If it cannot be written.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        header = {
            "format": _STATE_FORMAT,
            "done": str(done),
            "configuration": json.dumps({**self.configuration(), "data": data}, sort_keys=True),
        }
        tensorfile.write(path, self.sums.tensors, header)

    def load_state(self, path: str | Path, data: str = "") -> int:
        """Goes on from what :meth:`save_state` wrote.

        Args:
            path: The file; where there is none, nothing has been measured.
            data: As given to :meth:`save_state`.

        Returns:
            Batches measured.

        Raises:
            HeadRouterError: If it is no such file, or of other settings; it names them.
        """
        if not Path(path).is_file():
            return 0
        try:
            header, tensors = tensorfile.read(path)
            if header.get("format") != _STATE_FORMAT:
                raise ValueError(f"format {header.get('format')!r}, expected {_STATE_FORMAT!r}")
            was, done = dict(json.loads(header["configuration"])), int(header["done"])
        except (HeadRouterError, KeyError, TypeError, ValueError) as error:
            raise HeadRouterError(f"{path} holds no state of a calibration: {error}. Remove it.") from error
        now = {**self.configuration(), "data": data}
        if other := [name for name in {**was, **now} if was.get(name) != now.get(name)]:
            raise HeadRouterError(
                f"{path} is the state of another calibration: other {', '.join(other)}. Remove it, or name another."
            )
        if missing := self.sums.tensors.keys() - tensors.keys():
            raise HeadRouterError(
                f"{path} holds no state of a calibration: no {', '.join(sorted(missing))}. Remove it."
            )
        self.sums.tensors = {name: tensors[name] for name in self.sums.tensors}
        return done


class SelfCalibration:
    """What a model's own batches say of its heads: selectivity by the types that the prompt router gives.

    Types that no prompt is of take the mean of all samples: the profile is for batches like those that were measured.

    Args:
        handle: The model.
        layer: The prune layer K; the layer right below is probed.
        router: Whose prompt router gives the types; the shipped one where it has none.

    Attributes:
        sums: What was measured so far.
        batches: Counted by the caller.
    """

    def __init__(self, handle: LalmHandle, layer: int, router: Router) -> None:
        self.handle = handle
        self.layer = layer
        if isinstance(router, JointRouter):
            router = router.prompt
        self.prior = router if isinstance(router, PromptPrior) else PromptPrior()
        classifier = self.prior.classifier or PromptRouter.default()
        types = {str(name): classifier.families_[name] for name in classifier.types_}
        self.blank = HeadProfile("self", tuple(types), tuple(types.values()), metadata={"method": "nothing pruned yet"})
        self.sums = CalibrationSums(types, handle.num_heads(layer - 1)[0])
        self.batches = 0

    def engine(self, tokenizer: Tokenizer) -> ObservingEngine:
        """Hooks that measure each prefill, and drop nothing.

        Args:
            tokenizer: Reads the prompts.
        """
        return ObservingEngine(
            self.handle,
            Probe(layers=(self.layer - 1,)),
            self._receive,
            prompts=PromptReader(tokenizer),
            report=PruningReport(self.blank),
        )

    def _receive(self, measured: Measured) -> None:
        if measured.prompts is None:
            raise HeadRouterError(
                "profile='self' tells types by the prompts, and a forward shows none (inputs_embeds without "
                "input_ids). Take profile='generic'."
            )
        # A router of prompts reads no more of the attention than how many samples there are.
        likely = self.prior.route(
            self.blank, measured.prompts, torch.zeros(len(measured.prompts), 1, dtype=torch.float32)
        ).argmax(1)
        for row, kind in enumerate(likely.tolist()):
            attention = measured.attention[row, :, measured.audio_mask[row]]
            if attention.shape[1]:
                check_attention(attention, (self.layer - 1,), f"a sample with the prompt {measured.prompts[row]!r}")
                self.sums.add(self.blank.types[kind], attention)

    def profile(self) -> HeadProfile:
        """The profile of what was measured."""
        metadata = {**fingerprint(self.handle, (self.layer - 1,)), "method": "selectivity of the first batches",
                    "layer": str(self.layer)}  # fmt: skip
        return self.sums.profile("self", probe=Probe(layers=(self.layer - 1,)), metadata=metadata, share=True)


def check_settings(
    method: str,
    fit: str | None,
    types: Mapping[str, str],
    stretch: int = 25,
    ridge: float = 1e-2,
    smoothing: int = 0,
) -> None:
    """Refuses settings of :class:`ProfileCalibrator` that do not go together, before there is a model.

    Raises:
        ConfigurationError: It says what was given and what there is.
    """
    if method not in METHODS:
        raise unknown_name("calibration method", method, METHODS)
    if fit is not None and fit not in FITS[method]:
        if not FITS[method]:
            raise ConfigurationError(f"fit={fit!r} would be ignored: the method {method!r} has nothing to fit.")
        raise unknown_name(f"{method} fit", fit, FITS[method])
    if len(types) < 2 or set(types.values()) - {"semantic", "acoustic"}:
        raise ConfigurationError(
            f"types must be two names or more, each with its family, 'semantic' or 'acoustic', got {dict(types)}."
        )
    if stretch < 1 or not ridge > 0 or smoothing < 0:
        raise ConfigurationError(
            f"stretch must be at least 1, ridge positive and smoothing not negative, got {stretch}, {ridge} and "
            f"{smoothing}."
        )


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    name: str = "calibrated",
    data: str = "",
    state: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> HeadProfile:
    """Fits a profile to labelled batches.

    With ``state``, a run that was stopped goes on where it was: the batches must come in the same order. Of a sequence,
    those measured before are not asked for again.

    Args:
        model: A supported model, or any module that holds one.
        batches: See :class:`ProfileCalibrator`.
        name: What to call the profile.
        data: What the batches are, for the profile's metadata.
        state: Where to keep what was measured. It stays when the profile is there: remove it once that is saved.
        progress: Show a progress bar.
        settings: Of :class:`ProfileCalibrator`.

    Raises:
        HeadRouterError: If a sample cannot be used, or the samples do not suffice.
    """
    from tqdm.auto import tqdm

    calibrator = ProfileCalibrator(model, **settings)
    done = 0 if state is None else calibrator.load_state(state, data)
    saved = time.monotonic()
    total = len(batches) if isinstance(batches, Sized) else None
    rest: Iterable[Mapping[str, Any]] = islice(batches, done, None)
    if isinstance(batches, Sequence):
        rest = (batches[index] for index in range(done, len(batches)))
    bar = tqdm(rest, total=total, initial=done, desc="calibrating", unit="batch", disable=not progress)
    with evaluating(model), bar:
        for batch in bar:
            calibrator.update(batch, f"batch {done}")
            done += 1
            if state is not None and time.monotonic() - saved >= _SAVE_SECONDS:
                calibrator.save_state(state, done, data)
                saved = time.monotonic()
    if state is not None:
        calibrator.save_state(state, done, data)
    return calibrator.profile(name, data)


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block, a model is in evaluation mode; afterwards, each of its modules is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def prepare_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch's inputs on the model's device, and floats in its dtype, as processors do not give them."""
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return {
        name: value
        if not isinstance(value, Tensor)
        else value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def _check_labels(inputs: Mapping[str, Any], keys: Sequence[str]) -> None:
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.shape != inputs["input_ids"].shape:
        raise HeadRouterError("The method 'utility' reads the answers in inputs['labels'], [B, L] as input_ids.")
    for key, row in zip(keys, labels, strict=True):
        if bool((row[1:] == -100).all()):
            raise HeadRouterError(f"{key}: the answer is empty. Leave the sample out, or give its answer.")


def evidence_mask(spans: Sequence[Sequence[int]], length: int, key: str) -> Tensor:
    """Which of a sample's audio tokens are evidence.

    Args:
        spans: First token and first token behind, of each span.
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
                f"{key}: evidence {tuple(span)} is outside the audio, which has {length} tokens; expected (first, "
                "behind) with 0 <= first < behind."
            )
        mask[int(span[0]) : int(span[1])] = True
    return mask


def _stretches(length: int, stretch: int) -> list[tuple[int, int]]:
    """Cuts ``length`` tokens into the fewest stretches of at most ``stretch``, as even as they can be."""
    count = -(-length // stretch)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))
