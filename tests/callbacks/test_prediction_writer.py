"""JSONLPredictionWriter: one process, two, and runs that were killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import tiny_pocket
import torch
from two_processes import run_two

from headrouter_pl import HeadRouterCallback, LALMModule
from headrouter_pl.callbacks import JSONLPredictionWriter
from headrouter_pl.callbacks.prediction_writer import _merge
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule
from headrouter_pl.errors import ConfigurationError, HeadRouterError

torch.set_num_threads(1)

COUNT = 7  # odd, and no multiple of the batch size


class Stopping(LALMModule):
    """Answers so many batches, and then fails or kills its process."""

    left, kill, asked = 10**6, False, 0

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == self.left:
            if self.kill:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("stopped")
        self.asked += len(batch["keys"])
        return super().predict_step(batch, batch_idx)


def make(left: int = 10**6, kill: bool = False) -> Stopping:
    module = Stopping(
        tiny_pocket.build(), tiny_pocket.make_processor(), task="question", generate={"max_new_tokens": 4}
    )
    module.left, module.kill = left, kill
    return module


def data(count: int = COUNT, **options: Any) -> AudioPromptDataModule:
    records = [
        AudioPrompt(tiny_pocket.noise(i, 1.0 + i / 10), f"w4{i % 10} w50", "", key=f"k{i:02}") for i in range(count)
    ]
    return AudioPromptDataModule(tiny_pocket.make_processor(), predict=records, **{"batch_size": 2, **options})


def predict(module: LALMModule, module_data: Any, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    runner = L.Trainer(callbacks=list(callbacks), **{**settings, **options})
    runner.predict(module, module_data, return_predictions=False)
    return runner


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def want(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All predictions, as one process makes them."""
    path = tmp_path_factory.mktemp("alone") / "p.jsonl"
    predict(make(), data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path)))
    assert not list(path.parent.glob("*.part"))
    return rows(path)


def test_they_are_what_predict_returns(want: list[dict[str, Any]]) -> None:
    runner = L.Trainer(accelerator="cpu", logger=False, callbacks=[HeadRouterCallback(0.5)], enable_progress_bar=False)
    batches = runner.predict(make(), data())
    assert want == [row for batch in batches or [] for row in batch]  # type: ignore[union-attr]
    assert [row["key"] for row in want] == [f"k{i:02}" for i in range(COUNT)]
    assert len({row["text"] for row in want}) > 1


def test_a_stopped_run_goes_on(tmp_path: Path, want: list[dict[str, Any]]) -> None:
    path = tmp_path / "p.jsonl"
    with pytest.raises(RuntimeError, match="stopped"):
        predict(make(left=2), data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path)))
    assert not path.exists()
    (part,) = tmp_path.glob("*.part")
    with part.open("a") as out:
        out.write('[[0, 0, 4, 0, 1], {"key": "k04", "te')  # as a kill in the middle of writing leaves it
    module = make()
    predict(module, data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path), "resume"))
    assert rows(path) == want
    assert module.asked == COUNT - 4
    assert not list(tmp_path.glob("*.part"))


def test_nothing_left_to_predict(tmp_path: Path, want: list[dict[str, Any]]) -> None:
    path = tmp_path / "p.jsonl"
    with pytest.raises(RuntimeError, match="stopped"):
        predict(make(left=4), data(COUNT + 2), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path)))
    predict(make(left=0), data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path), "resume"))
    assert [row["key"] for row in rows(path)[:COUNT]] == [row["key"] for row in want]


def test_a_data_module_that_leaves_nothing_out(tmp_path: Path, want: list[dict[str, Any]]) -> None:
    path, loader = tmp_path / "p.jsonl", data().predict_dataloader()
    with pytest.raises(RuntimeError, match="stopped"):
        predict(make(left=2), loader, HeadRouterCallback(0.5), JSONLPredictionWriter(str(path)))
    module = make()
    predict(module, loader, HeadRouterCallback(0.5), JSONLPredictionWriter(str(path), "resume"))
    assert rows(path) == want
    assert module.asked == COUNT


def test_what_was_left_out_is_asked_by_the_next_run(tmp_path: Path, want: list[dict[str, Any]]) -> None:
    path, module_data = tmp_path / "p.jsonl", data()
    with pytest.raises(RuntimeError, match="stopped"):
        predict(make(left=2), module_data, HeadRouterCallback(0.5), JSONLPredictionWriter(str(path)))
    predict(make(), module_data, HeadRouterCallback(0.5), JSONLPredictionWriter(str(path), "resume"))
    module = make()
    predict(module, module_data, HeadRouterCallback(0.5))
    assert module.asked == COUNT


def test_what_was_left_out_is_asked_after_an_error_too(tmp_path: Path) -> None:
    path, module_data = tmp_path / "p.jsonl", data()
    for left in (2, 1):  # stopped, and the run that goes on as well
        with pytest.raises(RuntimeError, match="stopped"):
            predict(make(left=left), module_data, HeadRouterCallback(0.5), JSONLPredictionWriter(str(path), "resume"))
    module = make()
    predict(module, module_data, HeadRouterCallback(0.5))
    assert module.asked == COUNT


def test_names_are_taken_literally(tmp_path: Path) -> None:
    """As a pattern, "[0.5]" would be one character, and "run" would take in "run.b"."""
    with pytest.raises(RuntimeError, match="stopped"):
        predict(make(left=1), data(), JSONLPredictionWriter(str(tmp_path / "run.b")))
    for name in ("run", "run[0.5]"):
        predict(make(), data(), JSONLPredictionWriter(str(tmp_path / name), "overwrite"))
        assert len(rows(tmp_path / name)) == COUNT
    assert [part.name for part in tmp_path.glob("*.part")] == ["run.b.0.part"]


def test_fewer_samples_left_than_processes() -> None:
    module_data = data()
    module_data.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    module_data.leave_out([f"k{i:02}" for i in range(COUNT - 1)])
    with pytest.raises(ConfigurationError, match="1 samples are left to predict, fewer than the 2 processes"):
        module_data.predict_dataloader()
    module_data.leave_out([f"k{i:02}" for i in range(COUNT)])
    assert len(module_data.predict_dataloader()) == 0


def test_one_key_in_two_processes() -> None:
    row = {"key": "a", "text": "yes"}
    both: dict[str, Any] = {}
    _merge(both, iter([([0, 0, 3, 0, 1], row), ([0, 0, 3, 0, 1], row)]))  # one sample in both
    with pytest.raises(HeadRouterError, match="Two samples have the key 'a'"):
        _merge(both, iter([([0, 0, 4, 0, 1], row)]))


DDP = """
import sys
sys.path[:0] = PATH
import json
from pathlib import Path
from test_prediction_writer import HeadRouterCallback, JSONLPredictionWriter, data, make, predict

kill = Path("kill.txt").exists()
writer = JSONLPredictionWriter("p.jsonl", "resume")
module = make(1, True) if kill else make()
runner = predict(module, data(batch_size=1), HeadRouterCallback(0.5), writer, devices=2, strategy="ddp")
Path(f"{runner.global_rank}.json").write_text(json.dumps(module.asked))
"""


def test_two_processes_one_file(tmp_path: Path, want: list[dict[str, Any]]) -> None:
    (tmp_path / "kill.txt").touch()
    with pytest.raises(AssertionError):
        run_two(DDP, __file__, tmp_path)
    assert not (tmp_path / "p.jsonl").exists()
    written = sum(len(part.read_text().splitlines()) - 1 for part in tmp_path.glob("*.part"))
    assert written > 0
    (tmp_path / "kill.txt").unlink()
    asked = run_two(DDP, __file__, tmp_path)
    assert sum(asked) == COUNT - written
    found = rows(tmp_path / "p.jsonl")
    assert sorted(found, key=lambda row: row["key"]) == want
    assert not list(tmp_path.glob("*.part"))


def test_two_processes_keep_the_order_of_the_data(tmp_path: Path, want: list[dict[str, Any]]) -> None:
    assert sum(run_two(DDP, __file__, tmp_path)) == COUNT
    assert rows(tmp_path / "p.jsonl") == want


class TestRefusals:
    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text("mine\n")
        with pytest.raises(ConfigurationError, match="is there already"):
            predict(make(), data(), JSONLPredictionWriter(str(path)))
        with pytest.raises(ConfigurationError, match="is whole: there is nothing to resume"):
            predict(make(), data(), JSONLPredictionWriter(str(path), "resume"))
        assert path.read_text() == "mine\n"
        predict(make(), data(), JSONLPredictionWriter(str(path), "overwrite"))
        assert len(rows(path)) == COUNT

    def test_a_run_of_other_settings(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        with pytest.raises(RuntimeError, match="stopped"):
            predict(make(left=1), data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path)))
        (part,) = tmp_path.glob("*.part")
        before = part.read_bytes()
        with pytest.raises(ConfigurationError, match=r"other settings of HeadRouterCallback.*0\.5.*0\.3"):
            predict(make(), data(), HeadRouterCallback(0.3), JSONLPredictionWriter(str(path), "resume"))
        with pytest.raises(ConfigurationError, match="is there already"):
            predict(make(), data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path)))
        assert part.read_bytes() == before

    def test_a_run_of_another_version(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whose default prune layer and shipped profiles may be others."""
        path = tmp_path / "p.jsonl"
        with pytest.raises(RuntimeError, match="stopped"):
            predict(make(left=1), data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path)))
        monkeypatch.setattr("headrouter_pl.callbacks.prediction_writer.__version__", "99")
        with pytest.raises(ConfigurationError, match=r"other settings of HeadRouterCallback.*'version': '99'"):
            predict(make(), data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path), "resume"))

    def test_another_profile_would_be_measured(self, tmp_path: Path) -> None:
        path, settings = tmp_path / "p.jsonl", {"profile": "self", "calibration_batches": 1}
        with pytest.raises(RuntimeError, match="stopped"):
            predict(make(left=1), data(), HeadRouterCallback(0.5, **settings), JSONLPredictionWriter(str(path)))
        with pytest.raises(ConfigurationError, match="profile='self' would be measured anew"):
            predict(make(), data(), HeadRouterCallback(0.5, **settings), JSONLPredictionWriter(str(path), "resume"))

    def test_a_foreign_part(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl.0.part").write_text("hello\n")
        with pytest.raises(ConfigurationError, match="is no part of predictions"):
            predict(make(), data(), JSONLPredictionWriter(str(tmp_path / "p.jsonl"), "resume"))

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ("text", ConfigurationError, "returns a list of mappings"),
            ([{"text": "a"}], ConfigurationError, "needs a 'key'"),
            ([{"key": "a", "text": np.zeros(2)}], ConfigurationError, "JSON values"),
            ([{"key": "a"}, {"key": "a"}], HeadRouterError, "Two samples have the key 'a'"),
        ],
    )
    def test_predictions_that_cannot_be_written(
        self, tmp_path: Path, given: Any, error: type[Exception], message: str
    ) -> None:
        class Foreign(L.LightningModule):
            def predict_step(self, batch: Any, batch_idx: int) -> Any:
                return given

        with pytest.raises(error, match=message):
            predict(Foreign(), data(), JSONLPredictionWriter(str(tmp_path / "p.jsonl")))  # type: ignore[arg-type]
        assert not (tmp_path / "p.jsonl").exists()

    def test_an_unknown_mode(self) -> None:
        with pytest.raises(ConfigurationError, match="'error', 'resume' or 'overwrite', got 'append'"):
            JSONLPredictionWriter("p.jsonl", "append")  # type: ignore[arg-type]


def test_a_process_killed_outright_leaves_whole_lines(tmp_path: Path, want: list[dict[str, Any]]) -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "support"), str(here.parents[1])]
    script = (
        f"import sys; sys.path[:0] = {paths!r}\n"
        "from test_prediction_writer import *\n"
        "predict(make(2, True), data(), HeadRouterCallback(0.5), JSONLPredictionWriter('p.jsonl'))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, timeout=120)
    assert ended.returncode == -9, ended.stderr.decode()[-2000:]
    path = tmp_path / "p.jsonl"
    module = make()
    predict(module, data(), HeadRouterCallback(0.5), JSONLPredictionWriter(str(path), "resume"))
    assert module.asked == COUNT - 4
    assert rows(path) == want
