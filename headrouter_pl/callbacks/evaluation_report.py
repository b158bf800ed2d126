"""Writes and prints what an evaluation of several tasks came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from headrouter_pl.callbacks._common import StageCallback
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.results import format_table, json_lines, parse_json_lines, write_text
from headrouter_pl.tasks import Task
from headrouter_pl.tasks.scoring import TaskScores, agreement_with, percent_of, table

RESULTS, SAMPLES = "results.json", "samples.jsonl"
SCORED = ("validate", "test")
"""The stages whose steps return samples."""


class EvaluationReport(StageCallback):
    """Prints a table of the tasks that a validation or test scored, and writes ``results.json`` and ``samples.jsonl``.

    For any LightningModule whose step returns the rows of :func:`headrouter_pl.tasks.scoring.score_batch` as
    ``samples``, as :class:`headrouter_pl.LALMModule` does. Rows of all processes are gathered, each sample once if it
    has a key. While the run goes on, each process appends its rows to ``samples.RANK.part.jsonl``, which the end of the
    run removes.

    Args:
        folder: Where to write; results that are there are replaced.
        unpruned: ``results.json`` of a run without pruning on the same samples, to give scores in percent of; with its
            ``samples.jsonl`` beside it, also how many answers are the same, if all samples have keys.

    Attributes:
        results: What ``results.json`` holds: :func:`headrouter_pl.tasks.scoring.summarize`; if an unpruned run was
            given, ``percent_of_unpruned``, and ``agreement``, the percentage of samples that are answered as they were
            there (:func:`headrouter_pl.tasks.scoring.agreement_with`); ``failures`` (key and reason of samples without
            usable audio) and ``headrouter`` (what :class:`HeadRouterCallback` logged: the keep ratio that was applied,
            and what was saved).

    Raises:
        ConfigurationError: If ``unpruned`` is no such file, is of other samples, or would be replaced by this run's.
    """

    def __init__(self, folder: str | Path, unpruned: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.unpruned: dict[str, Any] | None = None
        self._unpruned_samples: list[dict[str, Any]] | None = None
        self.results: dict[str, Any] = {}
        self._scores = TaskScores()
        if unpruned is not None:
            if Path(unpruned).resolve() == (self.folder / RESULTS).resolve():
                raise ConfigurationError(f"This run would replace {unpruned}; give it another folder.")
            try:
                self.unpruned = json.loads(Path(unpruned).read_text(encoding="utf-8"))
                self.unpruned["tasks"]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise ConfigurationError(f"unpruned={str(unpruned)!r} holds no results of a run: {error!r}") from error
            lines = Path(unpruned).with_name(SAMPLES)
            if lines.is_file():
                self._unpruned_samples = _read_samples(lines)

    def _part(self, trainer: Trainer) -> Path:
        return self.folder / f"samples.{trainer.global_rank}.part.jsonl"

    @override
    def _on_epoch_start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage not in SCORED:
            return
        own = getattr(module, "task", None)
        self._scores = TaskScores(*([own] if isinstance(own, Task) else [])).to(module.device)
        if not trainer.sanity_checking:
            write_text(self._part(trainer), "")

    @override
    def _on_batch_end(self, trainer: Trainer, module: LightningModule, stage: str, outputs: Any, batch: Any) -> None:
        if stage not in SCORED:
            return
        if not isinstance(outputs, Mapping) or "samples" not in outputs:
            raise ConfigurationError("EvaluationReport needs steps that return 'samples', as LALMModule's do.")
        self._scores.update(outputs["samples"])
        if not trainer.sanity_checking:
            with self._part(trainer).open("a", encoding="utf-8") as out:
                out.write(json_lines(outputs["samples"]))

    @override
    def _on_stage_end(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage not in SCORED or trainer.sanity_checking:
            return
        results = self._scores.compute()
        samples = results.pop("samples")
        results["failures"] = [
            {"key": row["key"], "task": row["task"], "failure": row["failure"]} for row in samples if row["failure"]
        ]
        logged = trainer.callback_metrics.items()
        results["headrouter"] = {
            name.removeprefix("headrouter/"): float(value) for name, value in logged if name.startswith("headrouter/")
        }
        self.results = results
        if trainer.is_global_zero:
            write_text(self.folder / SAMPLES, json_lines(samples))
            self._write()
        self._part(trainer).unlink(missing_ok=True)
        if self.unpruned is not None:  # what was scored is on disk already, in case this is refused
            results["percent_of_unpruned"] = percent_of(results, self.unpruned)
            if self._unpruned_samples is not None and not all(row["key"] for row in samples):
                rank_zero_warn("Samples without keys: which answers are those of the unpruned run cannot be told.")
            elif self._unpruned_samples is not None:
                results["agreement"] = agreement_with(samples, self._unpruned_samples, results)
        if trainer.is_global_zero:
            self._write()
            if samples:
                print(format_table(table(results)))
            for failed in results["failures"]:
                print(f"counted as wrong: {failed['key']}: {failed['failure']}")
            print(f"{self.folder / RESULTS}, {self.folder / SAMPLES}: {len(samples)} samples")

    def _write(self) -> None:
        write_text(self.folder / RESULTS, json.dumps(self.results, ensure_ascii=False, indent=1) + "\n")


def _read_samples(path: Path) -> list[dict[str, Any]]:
    try:
        rows = parse_json_lines(path.read_text(encoding="utf-8"))
        for row in rows:
            row["task"], row["key"], row["answer"], row["text"], row["failure"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(f"{path} does not hold the samples of a run: {error!r}") from error
    return rows
