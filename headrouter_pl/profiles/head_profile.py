"""Head-weight profiles as values, and their file format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from headrouter_pl import tensorfile
from headrouter_pl.errors import HeadRouterError, ProfileMismatchError, UnknownNameError, unknown_name
from headrouter_pl.functional import Queries
from headrouter_pl.task_types import FAMILIES, TYPES

SHIPPED_FOLDER = Path(__file__).parent / "shipped"
"""Holds the calibrated profiles that come with the package."""

FORMAT = "headrouter-profile-3"
READABLE = ("headrouter-profile-1", "headrouter-profile-2", FORMAT)  # the first knew no features, the second no pool


@dataclass(frozen=True, eq=False)
class HeadProfile:
    """How much each probed head counts, for each type of task.

    P is the number of probed heads: ``len(layers) * num_heads``, layer by layer.

    Attributes:
        name: What to call it in reports.
        types: Names of the T task types.
        families: The family of each type, ``"semantic"`` or ``"acoustic"``.
        weights: Float tensor ``[T, P]``; None for the same weight on every head. With ``features="attention"`` rows lie
            on the simplex; with ``"log"`` they may be signed, and their absolute values sum to one.
        centroids: Float tensor ``[T, P]``, mean selectivity of each type; None where it was never measured, and the
            audio then says nothing about the type.
        bandwidth: Sigma of the Gaussian gates, in units of selectivity.
        layers: The probed decoder layers; None for the layer below the prune layer, whichever that is.
        queries: Whose attention the weights are for, ``"prompt"``, ``"last"`` or ``"max"``; see
            :class:`headrouter_pl.scorers.Probe`, here and below.
        rotary: Whether it is attention after the rotary embedding.
        pool: Audio tokens a group of the scout pass that it is measured in; None for the model's own pass.
        smoothing: Neighbours on each side that the scores are averaged over, see
            :func:`headrouter_pl.functional.smooth_over_time`; 0 for the scores as they are.
        weighting: ``"type"`` for the weights above, ``"selectivity"`` to weight each head by its own selectivity on
            the sample at hand.
        features: What the weights multiply: each head's ``"attention"`` a, or ``"log"``,
            :func:`headrouter_pl.functional.log_attention`.
        metadata: How and on what it was fitted, plain strings.
    """

    name: str
    types: tuple[str, ...] = tuple(TYPES)
    families: tuple[str, ...] = tuple(TYPES.values())
    weights: Tensor | None = None
    centroids: Tensor | None = None
    bandwidth: float = 0.1
    layers: tuple[int, ...] | None = None
    queries: Queries = "prompt"
    rotary: bool = False
    pool: int | None = None
    smoothing: int = 0
    weighting: Literal["type", "selectivity"] = "type"
    features: Literal["attention", "log"] = "attention"
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.types) != len(self.families) or len(set(self.types)) != len(self.types):
            raise HeadRouterError(
                f"A profile needs distinct types and one family each, got {self.types}, {self.families}."
            )
        if not all(isinstance(text, str) for pair in self.metadata.items() for text in pair):
            raise HeadRouterError(f"A profile's metadata are plain strings, got {dict(self.metadata)}.")
        if unknown := set(self.families) - set(FAMILIES):
            raise HeadRouterError(f"Families are 'semantic' and 'acoustic', got {', '.join(sorted(unknown))}.")
        if not self.bandwidth > 0:
            raise HeadRouterError(f"A profile's bandwidth must be positive, got {self.bandwidth}.")
        if self.queries not in get_args(Queries):
            raise HeadRouterError(f"A profile's queries are 'prompt', 'last' or 'max', got {self.queries!r}.")
        if self.pool is not None and not (isinstance(self.pool, int) and self.pool >= 1):
            raise HeadRouterError(f"A profile's pool is a number of tokens, at least 1, or None, got {self.pool!r}.")
        if not (isinstance(self.smoothing, int) and self.smoothing >= 0):
            raise HeadRouterError(f"A profile's smoothing is a number of tokens, 0 or more, got {self.smoothing!r}.")
        if self.weighting not in ("type", "selectivity"):
            raise HeadRouterError(f"A profile's weighting is 'type' or 'selectivity', got {self.weighting!r}.")
        if self.features not in ("attention", "log"):
            raise HeadRouterError(f"A profile's features are 'attention' or 'log', got {self.features!r}.")
        for title, tensor in (("weights", self.weights), ("centroids", self.centroids)):
            if tensor is not None and (tensor.dim() != 2 or len(tensor) != len(self.types)):
                raise HeadRouterError(f"Profile {title} must be [{len(self.types)}, P], got {list(tensor.shape)}.")
            if tensor is not None and not bool(tensor.isfinite().all()):
                raise HeadRouterError(f"Profile {title} must be finite, got NaN or infinity.")
        if self.layers is not None and (not self.layers or (self.num_probed or 0) % len(self.layers)):
            raise HeadRouterError(
                f"A profile weighs as many heads in each of its layers, got {self.num_probed} heads in the layers "
                f"{list(self.layers)}."
            )
        if self.features == "attention" and self.weights is not None and bool((self.weights < 0).any()):
            raise HeadRouterError("Profile weights on attention must not be negative; signed ones are for 'log'.")
        if self.weights is not None and self.centroids is not None and self.weights.shape != self.centroids.shape:
            raise HeadRouterError(
                f"Profile weights {list(self.weights.shape)} and centroids {list(self.centroids.shape)} must be of the "
                "same heads."
            )

    @property
    def num_probed(self) -> int | None:
        """Number of probed heads P, or None where the profile fits any number."""
        for tensor in (self.weights, self.centroids):
            if tensor is not None:
                return tensor.shape[1]
        return None

    def check(
        self, model_type: str, layers: Sequence[int], num_heads: int, sizes: Mapping[str, str] | None = None
    ) -> None:
        """Refuses a model this profile was not fitted for.

        Args:
            model_type: ``config.model_type`` of the model.
            layers: The layers that will be probed.
            num_heads: Query heads of each.
            sizes: What else must not differ from the metadata, see :func:`headrouter_pl.profiles.fingerprint`.

        Raises:
            ProfileMismatchError: If the model type, the number of probed heads or another size differs.
        """
        fitted = self.metadata.get("model_type")
        if fitted is not None and fitted != model_type:
            raise ProfileMismatchError(
                f"Profile {self.name!r} was fitted on model type {fitted!r}, the model is {model_type!r}. "
                "Calibrate one for this model, or take profile='generic'."
            )
        if self.num_probed is not None and self.num_probed != len(layers) * num_heads:
            raise ProfileMismatchError(
                f"Profile {self.name!r} weighs {self.num_probed} heads ([{len(self.types)}, {self.num_probed}]), the "
                f"model has {num_heads} heads in each of the probed layers {list(layers)} ({len(layers) * num_heads}). "
                "Calibrate one for this model and prune layer, or take profile='generic'."
            )
        known = {name: self.metadata[name] for name in sizes or () if name in self.metadata}
        if other := [name for name in known if sizes and known[name] != sizes[name]]:
            was, has = (", ".join(f"{name} {found[name]}" for name in other) for found in (known, sizes or {}))
            raise ProfileMismatchError(
                f"Profile {self.name!r} was fitted on a {model_type} model with {was}; this one has {has}. Calibrate "
                "one for this model, or take profile='generic'."
            )

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, tensors in float32 and everything else in its metadata.

        The file appears only once it is whole.

        Raises:
            HeadRouterError: If it cannot be written.
        """
        given = {"weights": self.weights, "centroids": self.centroids}
        tensors = {name: value.float() for name, value in given.items() if value is not None}
        header = {
            "format": FORMAT,
            "name": self.name,
            "types": json.dumps(self.types),
            "families": json.dumps(self.families),
            "bandwidth": repr(float(self.bandwidth)),
            "layers": json.dumps(self.layers),
            "queries": self.queries,
            "rotary": json.dumps(self.rotary),
            "pool": json.dumps(self.pool),
            "smoothing": json.dumps(self.smoothing),
            "weighting": self.weighting,
            "features": self.features,
            "metadata": json.dumps(dict(self.metadata), sort_keys=True),
        }
        tensorfile.write(path, tensors, header)

    @classmethod
    def load(cls, name_or_path: str | Path) -> HeadProfile:
        """Loads a shipped profile by name or one from a file.

        Args:
            name_or_path: A key of :data:`SHIPPED`, a file of :data:`SHIPPED_FOLDER` by its name without suffix, or the
                path of a file that :meth:`save` wrote.

        Raises:
            UnknownNameError: If it is neither.
            HeadRouterError: If the file is not a profile, is not whole, or is of a version that is not known.
        """
        if str(name_or_path) in SHIPPED:
            return SHIPPED[str(name_or_path)]
        files = {path.stem: path for path in sorted(SHIPPED_FOLDER.glob("*.safetensors"))}
        path = files.get(str(name_or_path), Path(name_or_path))
        if not path.is_file():
            if path.suffix:
                raise UnknownNameError(
                    f"There is no profile {path}. `headrouter-pl calibrate --output {path}` writes one for the pocket "
                    f"model, ProfileCalibration for any; by name there are {', '.join(sorted([*SHIPPED, *files]))}."
                )
            raise unknown_name("profile", str(name_or_path), [*SHIPPED, *files])
        header, tensors = tensorfile.read(path)
        if header.get("format") not in READABLE:
            raise HeadRouterError(
                f"{path} is not a head profile that this version reads: format {header.get('format')!r}, expected one "
                f"of {', '.join(map(repr, READABLE))}. Upgrade headrouter-pl, or calibrate anew."
            )
        try:
            layers = json.loads(header["layers"])
            fields = {
                "name": header["name"],
                "types": tuple(json.loads(header["types"])),
                "families": tuple(json.loads(header["families"])),
                "bandwidth": float(header["bandwidth"]),
                "layers": None if layers is None else tuple(layers),
                "queries": header.get("queries", "prompt"),
                "rotary": json.loads(header.get("rotary", "false")),
                "pool": json.loads(header.get("pool", "null")),
                "smoothing": json.loads(header.get("smoothing", "0")),
                "weighting": header["weighting"],
                "features": header.get("features", "attention"),
                "metadata": dict(json.loads(header["metadata"])),
            }
            return cls(weights=tensors.get("weights"), centroids=tensors.get("centroids"), **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise HeadRouterError(f"{path} is a head profile with a broken header: {error!r}") from error
        except HeadRouterError as error:
            raise HeadRouterError(f"{path}: {error}") from error

    def family_of(self, probabilities: Tensor) -> dict[str, Tensor]:
        """Sums type probabilities ``[B, T]`` into ``{"semantic": [B], "acoustic": [B]}``."""
        return {
            family: probabilities[:, [i for i, f in enumerate(self.families) if f == family]].sum(1)
            for family in FAMILIES
        }

    def mix(self, probabilities: Tensor, selectivity: Tensor) -> Tensor:
        """Head weights of each sample.

        Args:
            probabilities: Float tensor ``[B, T]``, the route.
            selectivity: Float tensor ``[B, P]``.

        Returns:
            Float tensor ``[B, P]``: the weights of the types, mixed by the route.
        """
        if self.weighting == "selectivity":
            weights = selectivity + torch.finfo(selectivity.dtype).eps  # audio on which no head selects: uniform
            return weights / weights.sum(1, keepdim=True)
        if self.weights is None:
            return torch.full_like(selectivity, 1 / selectivity.shape[1])
        return probabilities @ self.weights.to(probabilities, non_blocking=True)


SHIPPED: dict[str, HeadProfile] = {
    "generic": HeadProfile("generic", metadata={"method": "none: the same weight on every head"}),
    "sharp": HeadProfile("sharp", weighting="selectivity", metadata={"method": "none: each head by its selectivity"}),
}
"""Profiles that need no file."""
