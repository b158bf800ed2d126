"""Measures labelled batches, and fits profiles to what was measured."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headrouter_pl import tensorfile
from headrouter_pl._version import __version__
from headrouter_pl.calibration.batches import (
    check_answers,
    check_attention,
    check_rises,
    evidence_mask,
    prepare_inputs,
    sample_keys,
    spans_of,
    stretches,
)
from headrouter_pl.calibration.sums import FITS, CalibrationSums
from headrouter_pl.errors import ConfigurationError, HeadRouterError, unknown_name
from headrouter_pl.functional import Queries
from headrouter_pl.models import find_lalm
from headrouter_pl.models.modes import evaluating
from headrouter_pl.profiles import HeadProfile, fingerprint
from headrouter_pl.pruning.measuring import DroppingEngine, measure_attention
from headrouter_pl.pruning.pruner import prune_layer
from headrouter_pl.scorers import Probe
from headrouter_pl.task_types import FAMILIES, TYPES

METHODS = tuple(FITS)
"""What head weights are fitted to."""

SAVE_SECONDS = 10.0  # sums are written no more often than this
_STATE_FORMAT = "headrouter-calibration-1"


class ProfileCalibrator:
    """Measures batch by batch what a profile is fitted from. The model's weights do not change.

    A batch is a mapping with ``inputs`` (what the model's forward takes, prompts with their audio), ``types`` (a name
    for each sample), and perhaps ``keys`` (what to call the samples in errors). The method ``"evidence"`` also reads
    ``evidence``: for each sample a list of ``(start, end)`` in audio tokens, end exclusive. ``"utility"`` reads the
    answers in ``inputs["labels"]``, -100 elsewhere; see :func:`headrouter_pl.calibration.append_answers`.

    Args:
        model: A supported model, in evaluation mode, or any module that holds one.
        method: ``"selectivity"``: centroids and weights are the mean selectivity of heads (in the spirit of HeadRouter,
            arXiv 2604.23717). Ours: ``"evidence"``, weights that tell the tokens that the answer rests on from the
            others; ``"utility"``, weights that predict by how much the answer's negative log-likelihood rises when a
            stretch of audio is dropped.
        fit: For the latter two: ``"positive"``, non-negative least squares on attention; ``"signed"``, ridge regression
            on the logarithm of attention; for evidence also ``"mass"``, the mean attention on evidence above chance.
            ``"positive"`` if None.
        layer: The prune layer K that the profile is for; None for 3, for 2 with ``pool``, or for the layer above
            ``layers``, but not below 2; where the model does not allow it, the nearest that it does.
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
        queries: Queries = "prompt",
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
        self.probe = Probe(rotary, queries, layers=None if layers is None else tuple(sorted(layers)), pool=pool)
        self.layer = prune_layer(self.handle, layer, self.probe)
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
        """What a resumed run must share with the run before, and what the profile's metadata keeps."""
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
        """Measures one batch: as a whole or, where this raises, not at all.

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
        count = len(inputs["input_ids"])
        keys = sample_keys(batch, name, count)
        if len(kinds) != count:
            raise HeadRouterError(f"{name} has {count} samples and {len(kinds)} types.")
        for key, kind in zip(keys, kinds, strict=True):
            if kind not in self.types:
                raise HeadRouterError(f"{key}: type {kind!r} is none of {', '.join(self.types)}.")
        if self.method == "utility":
            check_answers(inputs, keys)
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
            for key, rise in zip(keys, rises, strict=True):
                if rise is not None:
                    check_rises(rise, key)
        if self.method == "evidence":
            evidence = [
                evidence_mask(spans, length, key) if length else None
                for spans, length, key in zip(spans_of(batch, name, count), seen, keys, strict=True)
            ]
        before = deepcopy(self.sums)
        try:
            for row, kind in enumerate(kinds):
                if not seen[row]:
                    continue
                values = self.sums.add(kind, attention[row])
                if (mask := evidence[row]) is not None:
                    self.sums.add_evidence(kind, values, mask)
                if (rise := rises[row]) is not None:
                    self.sums.add_utility(kind, values, stretches(seen[row], self.stretch), rise)
        except BaseException:  # an interrupted run goes on from whole batches
            self.sums = before
            raise

    def _rises(self, inputs: Mapping[str, Any], seen: Sequence[int]) -> list[Tensor | None]:
        """For each sample, by how much each of its stretches, dropped, raises the answer's NLL, ``[G]``."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        labels = inputs["labels"]
        engine = DroppingEngine(self.handle, self.layer)
        whole = engine.answer_nll(given, labels).cpu()
        bounds = [stretches(length, self.stretch) if length else [] for length in seen]
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
    if len(types) < 2 or set(types.values()) - set(FAMILIES):
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

    With ``state``, a run that was stopped goes on where it was: the batches must be the same, in the same order. Of a
    sequence, those measured before are not asked for again.

    Args:
        model: A supported model, or any module that holds one.
        batches: See :class:`ProfileCalibrator`.
        name: What to call the profile.
        data: What the batches are, for the profile's metadata.
        state: Where to keep what was measured. It stays when the profile is there: remove it once that is saved.
        progress: Show a progress bar.
        settings: Of :class:`ProfileCalibrator`.

    Raises:
        HeadRouterError: If a sample cannot be used, the samples do not suffice, or ``state`` is of more batches than
            there are.

    Warns:
        UserWarning: If ``state`` holds all batches already: those given are not looked at.
    """
    from tqdm.auto import tqdm

    calibrator = ProfileCalibrator(model, **settings)
    done = before = 0 if state is None else calibrator.load_state(state, data)
    saved = time.monotonic()
    total = len(batches) if isinstance(batches, Sized) else None
    bar = tqdm(
        _after(batches, before, state), total=total, initial=done, desc="calibrating", unit="batch",
        disable=not progress,
    )  # fmt: skip
    try:
        with evaluating(model), bar:
            for batch in bar:
                calibrator.update(batch, f"batch {done}")
                done += 1
                if state is not None and time.monotonic() - saved >= SAVE_SECONDS:
                    calibrator.save_state(state, done, data)
                    saved = time.monotonic()
    finally:
        if state is not None and done > before:
            calibrator.save_state(state, done, data)
    if done == before > 0:
        warnings.warn(
            f"{state} holds all {done} batches already: none was measured, and those given are not looked at. Remove "
            "it once the profile is saved, or to measure anew.",
            UserWarning,
            stacklevel=2,
        )
    return calibrator.profile(name, data)


def _after(batches: Iterable[Mapping[str, Any]], done: int, state: str | Path | None) -> Iterator[Mapping[str, Any]]:
    """The batches after those in ``state``."""
    rest: Iterator[Mapping[str, Any]]
    if isinstance(batches, Sequence):
        there, rest = len(batches), (batches[index] for index in range(done, len(batches)))
    else:
        rest = iter(batches)
        there = sum(1 for _ in islice(rest, done))
    if there < done:
        raise HeadRouterError(
            f"{state} is the state of {done} batches, and there are {there}: of other data. Remove it, or name another."
        )
    yield from rest
