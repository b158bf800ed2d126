"""``headrouter-pl calibrate``: a head-weight profile (or a linear probe) for the pocket LALM, from its benchmark."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from headrouter_pl.cli.pocket import choose_items, items_digest, load_model, weights_digest
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.functional import Queries
from headrouter_pl.profiles import TYPES
from headrouter_pl.results import check_output
from headrouter_pl.task_types import type_among

if TYPE_CHECKING:
    from headrouter_pl.data.pocket.benchmark import PocketItem

LINEAR_PROBE = "linear_probe"


def calibrate(
    weights: str = "shipped",
    checkpoint: str | None = None,
    split: str = "train",
    lengths: list[int] | None = None,
    max_scenes: int | None = None,
    method: str = "selectivity",
    fit: str | None = None,
    layer: int | None = None,
    layers: list[int] | None = None,
    types: dict[str, str] | None = None,
    queries: Queries = "prompt",
    rotary: bool = False,
    pool: int | None = None,
    smoothing: int = 0,
    stretch: int = 25,
    ridge: float = 1e-2,
    dtype: str = "float32",
    output: str = "outputs/pocket_profile.safetensors",
) -> None:
    """Fits a head-weight profile to questions of the Pocket benchmark, and writes it.

    An audio is encoded once for all its questions. A run that was stopped goes on where it was.

    Args:
        weights: "shipped", "untrained", or a folder of exported weights.
        checkpoint: A Lightning checkpoint of the training, instead of weights.
        split: "train" or "validation"; what a profile was fitted on cannot judge it.
        lengths: Seconds of the scenes to ask about; all by default.
        max_scenes: Scenes of each length, at most.
        method: "selectivity", "evidence" or "utility"; or "linear_probe" for the control that reads no attention, see
            :func:`headrouter_pl.calibration.linear_probe.fit_linear_probe`: of the settings below it takes types, ridge
            (its L2 penalty), dtype and output, and refuses the others; it starts anew after a stop.
        fit: For "evidence" and "utility" "positive" (the default) or "signed", for "evidence" also "mass".
        layer: The prune layer K; see :class:`headrouter_pl.calibration.ProfileCalibrator` for the default.
        layers: The probed layers, below K; the one right below by default. With pool anywhere, and the last of the
            first 73 % of the depth by default.
        types: Types, each with its family; semantic, sound and voice by default, which are those of the questions.
            "acoustic" may stand for sound, voice or both, whichever is not named. Other names are refused.
        queries: "prompt" averages over the question's tokens, "last" takes the last, "max" the one that looks most.
        rotary: Whether attention is measured after the rotary embedding.
        pool: Audio tokens a group of a scout pass to measure it in, for a profile that is used with such a pass.
        smoothing: Audio tokens on each side that scores are averaged over when the profile is used.
        stretch: Audio tokens that are dropped at once for "utility"; a second has 25.
        ridge: Regularisation.
        dtype: Of the weights, as torch names it.
        output: The file to write.
    """
    import torch

    from headrouter_pl import calibration
    from headrouter_pl.cli.profile import format_profile
    from headrouter_pl.data.pocket.benchmark import PocketBenchmark
    from headrouter_pl.models.checkpoints import get_dtype

    types = dict(TYPES if types is None else types)
    if method != LINEAR_PROBE:
        calibration.check_settings(method, fit, types, stretch, ridge, smoothing)
    else:
        given = {"fit": fit, "layer": layer, "layers": layers, "queries": queries, "rotary": rotary, "pool": pool,
                 "smoothing": smoothing, "stretch": stretch}  # fmt: skip
        usual = inspect.signature(calibrate).parameters
        if ignored := [name for name, value in given.items() if value != usual[name].default]:
            raise ConfigurationError(f"{', '.join(ignored)} would be ignored: a linear probe reads embeddings alone.")
        if not ridge > 0:
            raise ConfigurationError(f"ridge must be positive, got {ridge}.")
    if {type_among(kind, types) for kind in TYPES} != set(types):
        raise ConfigurationError(
            f"types must name each type of the questions ({', '.join(TYPES)}) or else its family (semantic, acoustic), "
            f"and nothing more, got {', '.join(types)}."
        )
    if split not in ("train", "validation"):
        raise ConfigurationError(f"A profile is fitted on the split 'train' or 'validation', not on {split!r}.")
    path = Path(output)
    weights_dtype = get_dtype(dtype)
    check_output(path)
    state = Path(f"{path}.state")
    benchmark = PocketBenchmark.open(split)
    items = choose_items(benchmark.items, lengths, max_scenes)
    model, processor = load_model(weights, checkpoint, weights_dtype)
    asked = f"{len(items)} questions ({items_digest(items)})"
    data = f"Pocket benchmark, {split}: {asked}, weights {weights_digest(model)}, {dtype}"
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    batches = _Questions(model, processor, benchmark.folder, items, types)
    try:
        if method == LINEAR_PROBE:
            from headrouter_pl.calibration.linear_probe import fit_linear_probe

            probe = fit_linear_probe(model, batches, types=types, regularisation=ridge, data=data)
            probe.save(path)
            print(f"Linear probe of samples: {probe.metadata['samples']}\nWritten: {output}")
            return
        profile = calibration.calibrate(
            model, batches, name=path.stem, data=data, state=state, method=method, fit=fit,
            layer=layer, layers=layers, types=types, queries=queries, rotary=rotary, pool=pool, smoothing=smoothing,
            stretch=stretch, ridge=ridge,
        )  # fmt: skip
    finally:
        batches.close()
    profile.save(path)
    state.unlink()  # not before: a run that cannot save is not lost
    print(format_profile(profile))
    print(f"Written: {output}")


class _Questions(Sequence[Mapping[str, Any]]):
    """Batches of one question each; the encoder, out of the model meanwhile, hears each audio once."""

    def __init__(
        self, model: Any, processor: Any, folder: Path, items: Sequence[PocketItem], types: Mapping[str, str]
    ) -> None:
        from headrouter_pl.data.packing import PackedCollator
        from headrouter_pl.models.encoded import EncodedAudio

        self.model = model
        self.processor = processor
        self.folder = folder
        self.items = items
        self.types = types
        self._collate = PackedCollator(processor)
        self._heard: tuple[str, Any] = ("", None)
        self._taken = EncodedAudio(model)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        from headrouter_pl.data.packing import PackedSample

        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = self.items[index]
        features = self._encode(item.audio)
        sample = PackedSample(features, [(item.prompt, item.answer)], item.key)
        inputs = self._collate([sample])["inputs"]
        # One row without padding: attention is causal and needs no mask in memory.
        inputs = {name: value for name, value in inputs.items() if name not in ("attention_mask", "position_ids")}
        kind = type_among(item.type, self.types)
        # The encoder may give a token less than the seconds have.
        spans = [(first, min(last, len(features))) for first, last in item.evidence_tokens]
        return {"inputs": inputs, "types": [kind], "evidence": [spans], "keys": [item.key]}

    def close(self) -> None:
        """Puts the encoder back."""
        self._taken.restore()

    def _encode(self, audio: str) -> Any:
        from headrouter_pl.data.audio import read_audio
        from headrouter_pl.models.encoded import encode_audio

        if self._heard[0] != audio:
            samples = read_audio(self.folder / audio, self.processor.feature_extractor.sampling_rate)
            with self._taken.whole():
                self._heard = (audio, encode_audio(self.model, self.processor, samples))
        return self._heard[1]
