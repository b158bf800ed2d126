"""Predictions as JSON lines, from any number of processes, whole after a crash."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from headrouter_pl._version import __version__
from headrouter_pl.callbacks.head_router import find_pruners
from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.results import json_lines, write_text

__all__ = ["JSONLPredictionWriter"]

Row = tuple[list[int], dict[str, Any]]  # where it stands, and the prediction


class JSONLPredictionWriter(BasePredictionWriter):
    """Writes what ``predict_step`` returns as JSON lines, batch by batch, and goes on where a killed run stopped.

    Example::

        trainer = L.Trainer(callbacks=[JSONLPredictionWriter("outputs/predictions.jsonl", "resume")])
        trainer.predict(module, data, return_predictions=False)

    For steps that return a list of mappings, each with a ``"key"`` of its own, as :class:`headrouter_pl.LALMModule`'s
    do. While the run goes on, each process appends to ``PATH.RANK.part``, and what a batch gave is on disk before the
    next one begins. In the end there is one file, in the order of the data (what a resumed run adds follows what was
    there), each sample once. Processes on several machines must share the folder.

    Args:
        path: The file; it appears when the run has ended.
        on_existing: What to do with what an earlier run left: stop with an ``"error"``; ``"resume"`` one that was
            killed, without asking again what it has answered (of a data module with ``leave_out``, as ours have;
            of others, all is answered again, and written once); or ``"overwrite"``.

    Raises:
        ConfigurationError: If there is something in the way, the killed run had other settings of a
            :class:`HeadRouterCallback` or pruned by another version, or a step returns something else.
        HeadRouterError: If two samples have one key.
    """

    def __init__(self, path: str, on_existing: Literal["error", "resume", "overwrite"] = "error") -> None:
        super().__init__("batch")
        if on_existing not in ("error", "resume", "overwrite"):
            raise ConfigurationError(f"on_existing must be 'error', 'resume' or 'overwrite', got {on_existing!r}.")
        self.path = Path(path)
        self.on_existing = on_existing
        self._done: set[str] = set()
        self._mine: set[str] = set()
        self._run = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        parts, settings = self._parts(), _settings(trainer)
        self._done, self._mine, self._run = set(), set(), 0
        if self.on_existing == "error" and (parts or self.path.exists()):
            found = self.path if self.path.exists() else parts[0]
            raise ConfigurationError(f"{found} is there already: name another file, or set on_existing.")
        if self.on_existing == "resume" and self.path.exists():
            raise ConfigurationError(f"{self.path} is whole: there is nothing to resume. Remove it to predict again.")
        rows: dict[str, Row] = {}
        if self.on_existing == "resume":
            for part in parts:
                _merge(rows, _read_part(part, settings))
            self._done = set(rows)
            self._run = 1 + max((at[0] for at, _ in rows.values()), default=-1)
            if rows and any(pruner.calibration_batches for pruner in find_pruners(trainer, "predict")):
                raise ConfigurationError(
                    f"{self.path} has samples already, and profile='self' would be measured anew, on other batches. "
                    "Calibrate beforehand (headrouter-pl calibrate), or set on_existing='overwrite'."
                )
            if rows:
                rank_zero_info(f"JSONLPredictionWriter: {len(rows)} samples are in {self.path.parent} already.")
        _leave_out(trainer, self._done)
        trainer.strategy.barrier()  # all have read before anything is written
        if trainer.is_global_zero:
            first = self._part(0)
            header = {"settings": settings}
            write_text(first, _lines([header, *([at, row] for at, row in rows.values())]))
            for part in parts:
                if part != first:
                    part.unlink()
            if self.on_existing == "overwrite":
                self.path.unlink(missing_ok=True)
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            write_text(self._part(trainer.global_rank), _lines([{"settings": settings}]))

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not isinstance(prediction, Sequence) or not all(isinstance(row, Mapping) for row in prediction):
            raise ConfigurationError(
                f"JSONLPredictionWriter needs a predict_step that returns a list of mappings, got {type(prediction)}."
            )
        # Failed samples follow the others of their batch, so that the batch's place counts, and then theirs in it.
        known = int(bool(batch_indices))
        place = batch_indices[0] if batch_indices else batch_idx * trainer.world_size + trainer.global_rank
        lines: list[list[Any]] = []
        for number, row in enumerate(prediction):
            key = row.get("key")
            if not isinstance(key, str) or not key:
                raise ConfigurationError(
                    f"Each prediction needs a 'key', a string that tells it from others; got {row}."
                )
            if key in self._mine:
                raise HeadRouterError(f"Two samples have the key {key!r}; give each its own.")
            self._mine.add(key)
            if key not in self._done:
                lines.append([[self._run, dataloader_idx, place, number, known], dict(row)])
        text = _lines(lines)
        with self._part(trainer.global_rank).open("a", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        _leave_out(trainer, ())  # of this run alone; teardown is not called

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not on_predict_end, which is not called where nothing was left to predict.
        if stage != "predict":
            return
        _leave_out(trainer, ())
        trainer.strategy.barrier()
        rows: dict[str, Row] = {}
        parts = self._parts()
        for part in parts:  # in all processes, so that all stop if two samples have one key
            _merge(rows, _read_part(part, _settings(trainer)))
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            ordered = sorted(rows.values(), key=lambda row: row[0])
            write_text(self.path, _lines([row for _, row in ordered]))
            for part in parts:
                part.unlink()
            rank_zero_info(f"{self.path}: {len(ordered)} predictions")
        trainer.strategy.barrier()

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{rank}.part")

    def _parts(self) -> list[Path]:
        if not self.path.parent.is_dir():
            return []
        name = re.compile(re.escape(self.path.name) + r"\.\d+\.part")
        return sorted(path for path in self.path.parent.iterdir() if name.fullmatch(path.name))


def _settings(trainer: Trainer) -> list[Any]:
    """What the pruners of a run are set to, as JSON values, and the version whose defaults and profiles they take."""
    pruners = find_pruners(trainer, "predict")
    settings = [{**pruner.state_dict()["settings"], "version": __version__} for pruner in pruners]
    return json.loads(json.dumps(settings, default=str))


def _leave_out(trainer: Trainer, keys: Collection[str]) -> None:
    """Has a data module leave out what was predicted, if it can."""
    if callable(leave_out := getattr(getattr(trainer, "datamodule", None), "leave_out", None)):
        leave_out(keys)


def _lines(values: Sequence[Any]) -> str:
    try:
        return json_lines(values)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"A prediction must be made of JSON values: {error}.") from error


def _read_part(path: Path, settings: list[Any]) -> Iterator[Row]:
    """The whole lines of a process's file; a killed process may leave a part of one."""
    whole = path.read_bytes()
    lines = whole[: whole.rfind(b"\n")].decode("utf-8").split("\n") if b"\n" in whole else []
    try:
        values = [json.loads(line) for line in lines]
        was = values[0]["settings"] if values else settings
        rows: list[Row] = [(at, row) for at, row in values[1:]]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(f"{path} is no part of predictions: {error!r}") from error
    if was != settings:
        raise ConfigurationError(
            f"{path} is of a run with other settings of HeadRouterCallback, {was}; these are {settings}. "
            "Set on_existing='overwrite', or name another file."
        )
    yield from rows


def _merge(rows: dict[str, Row], more: Iterator[Row]) -> None:
    for at, row in more:
        was = rows.get(row["key"], (at, row))
        # Of one run, another place in the data is another sample, whatever was said of it.
        elsewhere = was[0][4] and at[4] and was[0][0] == at[0] and was[0][1:3] != at[1:3]
        if was[1] != row or elsewhere:
            raise HeadRouterError(f"Two samples have the key {row['key']!r}; give each its own.")
        rows.setdefault(row["key"], (at, row))
