"""What a profile is fitted from, and the fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.functional import log_attention, selectivity
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.scorers import Probe

FITS: Mapping[str, tuple[str, ...]] = {
    "selectivity": (),
    "evidence": ("positive", "signed", "mass"),
    "utility": ("positive", "signed"),
}
"""How they are fitted, for each method; the first is the default."""

MIN_BANDWIDTH = 1e-3
_FLAT = 1e-10
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
            bounds: ``(start, end)`` of each of G stretches, end exclusive.
            rises: Float tensor ``[G]``: rise of the answer's negative log-likelihood when the stretch is dropped.
        """
        if len(bounds) < 2:
            return
        features = self._features(attention.double())
        means = torch.stack([features[:, first:last].mean(1) for first, last in bounds], 1)
        weights = torch.full((len(bounds),), 1 / len(bounds), dtype=torch.float64)
        self._regress(kind, means, rises.detach().cpu().double(), weights, None)

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Adds up the sums of several processes.

        Args:
            total: Sums one tensor over the processes, and gives each the result.
        """
        self.tensors = {name: total(tensor) for name, tensor in self.tensors.items()}

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
            instead = ", or name the types that there are" if int((samples > 0).sum()) > 1 else ""
            raise HeadRouterError(
                f"Calibration needs samples with audio of every type, got: {listed}. Add data of the missing types"
                f"{instead}."
            )
        totals = self.tensors["selectivity"]
        pooled = totals.sum(0) / samples.sum()
        centroids = torch.where(samples[:, None] > 0, totals / samples.clamp(min=1)[:, None], pooled)
        bandwidth = self._bandwidth(centroids)
        if bandwidth is None and not share:
            raise HeadRouterError(
                f"Calibration needs two samples or more of a type, to see how they vary, got: {listed}. Add data."
            )
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
