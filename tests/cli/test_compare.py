"""``headrouter-pl compare`` on a tiny model and scenes of noise."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from tiny_pocket import build, make_processor, make_questions, noise

from headrouter_pl import AudioTokenPruner, HeadRouterCallback, LALMModule
from headrouter_pl.cli import compare as command
from headrouter_pl.cli import compare_report, main, method_runner
from headrouter_pl.cli.compare import KEEP_RATIOS, compare
from headrouter_pl.cli.compare_report import draw, write_report
from headrouter_pl.cli.method_runner import MethodRunner, build_scorer, read_methods, read_ratios, seed_for
from headrouter_pl.cli.pocket import choose_items
from headrouter_pl.comparison import Method
from headrouter_pl.data import AudioPrompt, AudioPromptDataModule
from headrouter_pl.data.pocket.benchmark import PocketBenchmark, PocketItem
from headrouter_pl.data.pocket.questions import QUESTION_TASKS
from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.models.answering import AudioReader, EncodedPrompter
from headrouter_pl.models.encoded import encoded_audio
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers import prompt as prompt_router
from headrouter_pl.routers.prompt import shipped_prompts
from headrouter_pl.scorers import HeadRouterScorer, ScoringInputs
from headrouter_pl.scorers.stride import StrideScorer

torch.set_num_threads(1)

TOKENS = 4
RATIOS = [0.5, 0.2]
TYPES = {"semantic": "semantic", "voice": "voice"}
METHODS: list[dict[str, Any]] = [
    {"name": "random", "scorer": "random", "seeds": [0, 1]},
    {"name": "stride", "scorer": "stride", "layer": 1},
    {"name": "routed", "scorer": "headrouter", "profile": "sharp", "router": "prompt"},
    {"name": "true type", "scorer": "headrouter", "profile": "generic", "types": TYPES},
    {"name": "known", "scorer": "tiny_pocket.KnownScorer", "init_args": {"first": "semantic"}},
]
TIMES = ("prefill_seconds", "unpruned_seconds")


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PocketBenchmark:
    """Three scenes, five questions; the model is the tiny one, which answers those of one task right unpruned."""
    made = make_questions(tmp_path)
    reader = AudioReader(build(), make_processor(), TOKENS)
    answers = {
        item.key: reader.answer(reader.read(noise(int(item.audio[0]), item.seconds)), item.prompt)
        for item in made.items if item.task == "gender"
    }  # fmt: skip
    items = [
        replace(item, answer=answers[item.key], options=()) if item.key in answers else item for item in made.items
    ]
    made = replace(made, items=items)
    monkeypatch.setattr(PocketBenchmark, "open", lambda split: made)
    monkeypatch.setattr(command, "load_model", lambda weights, checkpoint, dtype: (build().to(dtype), make_processor()))
    monkeypatch.setattr(command, "MAX_NEW_TOKENS", TOKENS)
    monkeypatch.setattr(method_runner, "MAX_NEW_TOKENS", TOKENS)
    monkeypatch.setattr(compare_report, "draw", lambda *_: [])  # slow, and for TestReport
    return made


def run(folder: Path, name: str = "log", **settings: Any) -> dict[str, Any]:
    given = {"methods": METHODS, "keep_ratios": RATIOS, "dtype": "float32"}
    return compare(**{**given, **settings}, details=str(folder / f"{name}.jsonl"), folder=str(folder / name))


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a log, without what differs from run to run."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[1:] if line]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def steady(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures without times."""
    rows = {
        name: [{k: v for k, v in row.items() if k != "cost"} for row in figures[name]] for name in ("rows", "lengths")
    }
    return {**figures, **rows}


class TestRows:
    @pytest.fixture
    def rows(self, questions: PocketBenchmark, tmp_path: Path) -> list[dict[str, Any]]:
        run(tmp_path)
        return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[1:]]

    def test_one_for_each_question_method_seed_and_ratio(
        self, rows: list[dict[str, Any]], questions: PocketBenchmark
    ) -> None:
        wanted = {("unpruned", None, 1.0)} | {
            (method["name"], seed, ratio)
            for method in METHODS for seed in method.get("seeds", (None,)) for ratio in RATIOS
        }  # fmt: skip
        assert len(rows) == len(wanted) * len(questions.items) == 13 * 5
        assert {(row["item"], row["method"], row["seed"], row["keep_ratio"]) for row in rows} == {
            (item.key, *one) for item in questions.items for one in wanted
        }
        # All methods answer a question before the next one is asked.
        for number in range(5):
            assert len({row["item"] for row in rows[13 * number : 13 * (number + 1)]}) == 1
        lengths = [row["seconds"] for row in rows[::13]]
        assert sorted(lengths[:3]) == [1, 1, 2]  # a scene of one length, then of the other

    @torch.inference_mode()
    def test_answers_are_those_of_the_plain_way(self, rows: list[dict[str, Any]], questions: PocketBenchmark) -> None:
        model, processor = build(), make_processor()
        items = {item.key: item for item in questions.items}
        data, texts, applied = AudioPromptDataModule(processor), set(), []
        for row in rows:
            item = items[row["item"]]
            audio = questions.folder / item.audio
            inputs = data.collate([AudioPrompt(audio, item.prompt)])["inputs"]
            if row["method"] == "unpruned":
                reader = AudioReader(model, processor, TOKENS)
                number = int(item.audio[0])
                assert row["text"] == reader.answer(reader.read(noise(number, item.seconds)), item.prompt)
                assert (row["applied_ratio"], row["evidence_recall"], row["route"]) == (1, 1, {})
                assert row["prefill_seconds"] == row["unpruned_seconds"]
            elif row["method"] in ("random", "stride", "routed"):
                method = read_methods([m for m in METHODS if m["name"] == row["method"]])[0]
                scorer = build_scorer(method, None if row["seed"] is None else seed_for(item, row["seed"]))
                pruner = AudioTokenPruner(row["keep_ratio"], layer=method.layer, scorer=scorer, tokenizer=processor)
                with pruner(model) as report:
                    output = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
                text = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                assert row["text"] == text
                sample = report.samples[0]
                assert row["applied_ratio"] == sample.keep_ratio
                assert row["route"] == pytest.approx(sample.types, abs=1e-4)
                start = (inputs["input_ids"][0] == model.config.audio_token_id).nonzero()[0]
                kept = set((sample.kept - start).tolist())
                assert row["evidence_recall"] == pytest.approx(len(kept & set(range(25))) / 25, abs=1e-4)
                texts.add((row["item"], row["text"]))
                applied.append(row["applied_ratio"])
        assert len(texts) > len(items)  # pruning changes answers
        assert set(applied) == {0.2, 0.48, 0.5}  # 12 of 25 tokens; 25 of 50
        assert all(0 < row[name] < 10 for row in rows for name in TIMES)

    def test_controls_are_told(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["method"] == "true type":
                assert row["route"] == {kind: float(kind == row["type"]) for kind in ("semantic", "sound", "voice")}
            if row["method"] == "known":  # no more tokens than evidence, or as many
                assert row["evidence_recall"] == min(1, row["applied_ratio"] * row["seconds"])


@torch.inference_mode()
def test_one_task_with_and_without_eviction(questions: PocketBenchmark, tmp_path: Path) -> None:
    late: dict[str, Any] = {"name": "late", "scorer": "stride", "layer": 3}
    methods = [late, {**late, "name": "early", "evict_early": True}]
    run(tmp_path, methods=methods, keep_ratios=[0.2], tasks=["transcription"])
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[1:]]
    items = {item.key: item for item in questions.items if item.task == "transcription"}
    assert len(rows) == 3 * len(items)
    assert {row["item"] for row in rows} == items.keys()
    model, processor = build(), make_processor()
    data, texts = AudioPromptDataModule(processor), {}
    for key, item in items.items():
        inputs = data.collate([AudioPrompt(questions.folder / item.audio, item.prompt)])["inputs"]
        for name, early in (("late", False), ("early", True)):
            with AudioTokenPruner(0.2, scorer="stride", layer=3, evict_early=early)(model):
                output = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
            texts[key, name] = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert {(row["item"], row["method"]): row["text"] for row in rows if row["method"] != "unpruned"} == texts
    assert any(texts[key, "late"] != texts[key, "early"] for key in items)


def test_a_method_that_calibrates_itself(questions: PocketBenchmark, tmp_path: Path) -> None:
    """Its head weights are those that the callback finds on the same questions, and its answers go by them."""
    methods = [{"name": "self", "scorer": "headrouter", "profile": "self", "layer": 2}]
    run(tmp_path, methods=methods, keep_ratios=[0.3])
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["configuration"]["methods"]["self"]
    runner = MethodRunner(build(), make_processor(), read_methods(methods), [0.3], ["semantic", "voice"])
    runner.calibrate(choose_items(questions.items, None, None), questions.folder)
    assert runner.describe()["self"]["digest"] == row["digest"]
    items = choose_items(questions.items, None, None)
    records = [AudioPrompt(noise(int(i.audio[0]), i.seconds), i.prompt, key=i.key) for i in items]
    callback = HeadRouterCallback(0.3, profile="self", layer=2)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    with pytest.warns(UserWarning, match="so none was pruned"):
        trainer.predict(LALMModule(build(), make_processor()), AudioPromptDataModule(make_processor(), predict=records))
    found, theirs = runner.runs[0].engine.scorer.profile, callback.calibrated["predict"]  # type: ignore[attr-defined]
    assert found.types == theirs.types
    torch.testing.assert_close(found.weights, theirs.weights, rtol=1e-4, atol=1e-5)
    assert found.weights.std() > 0


def test_a_method_that_calibrates_itself_on_other_queries(questions: PocketBenchmark, tmp_path: Path) -> None:
    """Centroids, and what is compared with them, are of the same queries."""
    methods = [{"name": "self", "scorer": "headrouter", "profile": "self", "init_args": {"queries": "last"}}]
    runner = MethodRunner(build(), make_processor(), read_methods(methods), [0.3], ["semantic", "voice"])
    runner.calibrate(choose_items(questions.items, None, None), questions.folder)
    scorer: Any = runner.runs[0].engine.scorer
    assert scorer.profile.queries == scorer.probe.queries == "last"


class Sharper(HeadRouterScorer):
    """One that a profile measured by the plain scorer would replace."""


@pytest.mark.parametrize("scorer", [f"{__name__}.Sharper", f"{__name__}.Profiled"])
def test_only_the_plain_scorer_calibrates_itself(scorer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PocketBenchmark, "open", lambda split: pytest.fail("opened"))
    with pytest.raises(
        ConfigurationError, match=f"the profile 'self' is for the scorer 'headrouter', not for {scorer!r}"
    ):
        run(tmp_path, methods=[{"name": "a", "scorer": scorer, "profile": "self"}])


def test_one_method_alone(questions: PocketBenchmark, tmp_path: Path) -> None:
    figures = run(tmp_path, methods=METHODS[1:2], tested=["stride"])
    assert {test["b"] for test in figures["tests"]} == {"unpruned"}
    assert "## stride against others, all, n = 5" in (tmp_path / "log" / "comparison.md").read_text(encoding="utf-8")


class TestResume:
    def test_a_file_cut_anywhere_gives_the_same_rows(self, questions: PocketBenchmark, tmp_path: Path) -> None:
        whole = run(tmp_path, "whole")
        content = (tmp_path / "whole.jsonl").read_bytes()
        for share in (0.0001, 0.31, 0.62, 0.93):
            (tmp_path / "cut.jsonl").write_bytes(content[: int(share * len(content))])
            again = run(tmp_path, "cut")
            assert read(tmp_path / "cut.jsonl") == read(tmp_path / "whole.jsonl")
            assert steady(again) == steady(whole)

    def test_figures_name_the_machine_that_answered(
        self, questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = run(tmp_path, methods=METHODS[:2])["machine"]
        monkeypatch.setattr("headrouter_pl.cli.tables.machine", lambda: "Another")
        assert run(tmp_path, methods=METHODS[:2])["machine"] == here
        assert run(tmp_path)["machine"] == f"Another and {here}"

    def test_a_killed_run_asks_nothing_twice(
        self, questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(tmp_path, "whole")
        plain, asked = MethodRunner.answer_pruned, []

        def answer(self: MethodRunner, one: Any, item: PocketItem, *rest: Any) -> Any:
            if len(rest) == 2:  # not to warm up
                asked.append((item.key, one.method.name, one.seed, one.ratio))
                if len(asked) == 20:
                    raise KeyboardInterrupt
            return plain(self, one, item, *rest)

        monkeypatch.setattr(MethodRunner, "answer_pruned", answer)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        assert asked.pop() not in asked
        with open(tmp_path / "log.jsonl", "a") as file:
            file.write('{"key": "half a li')
        asked += [("", "", None, 0)] * 20
        run(tmp_path)
        done = [one for one in asked if one[0]]
        assert len(done) == len(set(done)) == 5 * 12
        assert read(tmp_path / "log.jsonl") == read(tmp_path / "whole.jsonl")

    def test_another_configuration_is_refused(self, questions: PocketBenchmark, tmp_path: Path) -> None:
        profile = HeadProfile("mine", weights=torch.eye(3, 4))
        profile.save(tmp_path / "mine.safetensors")
        given = [{"name": "mine", "scorer": "headrouter", "profile": str(tmp_path / "mine.safetensors")}]
        run(tmp_path, methods=given, max_minutes=0)
        run(tmp_path, methods=given, max_minutes=0)
        for settings, message in (
            ({"methods": [{**METHODS[1], "name": "mine"}]}, r"other methods \(mine\)\."),
            ({"methods": given, "lengths": [2]}, "other items"),
            ({"methods": given, "dtype": "bfloat16"}, "other dtype"),
        ):
            with pytest.raises(HeadRouterError, match=message):
                run(tmp_path, **settings)
        replace(profile, weights=torch.eye(3, 4).flip(1)).save(tmp_path / "mine.safetensors")
        with pytest.raises(HeadRouterError, match=r"other methods \(mine\)"):
            run(tmp_path, methods=given, max_minutes=0)

    @pytest.mark.parametrize("name", ["format", "prompts"])
    def test_answers_of_other_code_are_refused(
        self, questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        run(tmp_path, max_minutes=0)
        with monkeypatch.context() as patch:
            if name == "format":
                patch.setattr(command, "FORMAT", command.FORMAT + 1)
            else:
                prompts = shipped_prompts()
                patch.setattr(prompt_router, "shipped_prompts", lambda: prompts[1:])
            with pytest.raises(HeadRouterError, match=rf"other {name}\. Name another file, or remove it"):
                run(tmp_path, max_minutes=0)
        run(tmp_path, max_minutes=0)
        header, rest = (tmp_path / "log.jsonl").read_text().split("\n", 1)
        old = json.loads(header)
        del old["configuration"][name]  # as before there was such a thing
        (tmp_path / "log.jsonl").write_text(f"{json.dumps(old)}\n{rest}")
        with pytest.raises(HeadRouterError, match=rf"other {name}\."):
            run(tmp_path, max_minutes=0)

    def test_further_methods_and_ratios_are_asked_alone(self, questions: PocketBenchmark, tmp_path: Path) -> None:
        whole = run(tmp_path, "whole")
        run(tmp_path, methods=METHODS[:2], keep_ratios=RATIOS[:1])
        first = (tmp_path / "log.jsonl").read_text(encoding="utf-8").split("\n", 1)[1]
        run(tmp_path, methods=METHODS[2:], keep_ratios=RATIOS[1:])
        assert (tmp_path / "log.jsonl").read_text(encoding="utf-8").split("\n", 1)[1].startswith(first)
        assert steady(run(tmp_path)) == steady(whole)
        rows = {name: {row["key"]: row for row in read(tmp_path / f"{name}.jsonl")} for name in ("log", "whole")}
        assert rows["log"] == rows["whole"]
        assert run(tmp_path, methods=METHODS[:1], max_minutes=0)["questions"] == 5

    def test_stops_in_time_and_reports_what_is_there(
        self, questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        output = tmp_path / "figures.json"
        output.write_text("kept")
        assert run(tmp_path, max_minutes=0, output=str(output))["questions"] == 0
        assert "No question has been answered" in capsys.readouterr().out
        assert output.read_text() == "kept"
        clock = iter([0, *[1] * 4, *[1000] * 100])
        with monkeypatch.context() as patch:
            patch.setattr(method_runner.time, "monotonic", lambda: next(clock))
            figures = run(tmp_path, max_minutes=1)
        assert 0 < figures["questions"] < 5
        assert figures["questions_planned"] == 5
        part = steady(run(tmp_path, max_minutes=0))
        assert part == steady(figures)
        assert run(tmp_path)["questions"] == 5


def test_nothing_is_done_twice(questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, counts = build(), {"encoder": 0, "inputs": 0, "loaded": 0}

    def load(*_: Any) -> Any:
        counts["loaded"] += 1
        return model, make_processor()

    plain = EncodedPrompter.inputs

    def inputs(self: Any, *args: Any) -> Any:
        counts["inputs"] += 1
        return plain(self, *args)

    monkeypatch.setattr(command, "load_model", load)
    monkeypatch.setattr(EncodedPrompter, "inputs", inputs)
    encoder = model.model.audio_tower
    encoder.register_forward_hook(lambda *_: counts.update(encoder=counts["encoder"] + 1))
    run(tmp_path)
    assert counts == {"encoder": 3, "inputs": 5 + 1, "loaded": 1}  # once more to warm up
    assert model.model.audio_tower is encoder
    assert "generate" not in vars(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


class TestReport:
    @pytest.fixture
    def figures(
        self,
        questions: PocketBenchmark,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> dict[str, Any]:
        if request.function.__name__ == "test_figures":
            monkeypatch.setattr(compare_report, "draw", draw)
        config = {
            "methods": METHODS, "keep_ratios": [1.0, *RATIOS], "dtype": "float32", "tested": ["known"],
            "details": str(tmp_path / "log.jsonl"), "folder": str(tmp_path / "report"), "split": "test",
            "output": str(tmp_path / "new" / "compare.json"),
        }  # fmt: skip
        (tmp_path / "compare.yaml").write_text(json.dumps(config))  # JSON is YAML
        main(["compare", "--config", str(tmp_path / "compare.yaml")])
        return json.loads((tmp_path / "new" / "compare.json").read_text())

    def test_json(self, figures: dict[str, Any], tmp_path: Path) -> None:
        assert figures["split"] == "test"
        assert figures["command"] == f"headrouter-pl compare --config {tmp_path / 'compare.yaml'}"
        assert figures["questions"] == figures["questions_planned"] == 5
        fields = {"scorer", "profile", "router", "keep_ratio", "applied_ratio", "type", "task", "n", "accuracy",
                  "agreement", "percent_of_unpruned", "cost", "evidence_recall"}  # fmt: skip
        assert all(fields <= row.keys() for row in figures["rows"])
        assert {(row["type"], row["task"]) for row in figures["rows"]} == {
            ("voice", "gender"), ("semantic", "transcription"),
            ("voice", "mean"), ("semantic", "mean"), ("all", "mean"),
        }  # fmt: skip
        assert len(figures["rows"]) == 5 * (1 + 5 * len(RATIOS))
        fields = {"a", "b", "keep_ratio", "type", "n", "difference", "ci95", "p"}
        fields |= {f"agreement_{name}" for name in ("difference", "ci95", "p")}
        assert all(fields == test.keys() for test in figures["tests"])
        assert len(figures["tests"]) == 5 * len(RATIOS) * 3
        assert {(route["method"], route["type"]) for route in figures["routes"]} == {
            (method, kind) for method in ("routed", "true type") for kind in ("voice", "semantic")
        }
        assert all(sum(route["histogram"]) == route["n"] for route in figures["routes"])
        # One line a row, for diffs.
        text = (tmp_path / "new" / "compare.json").read_text()
        assert sum('{"method": ' in line for line in text.splitlines()) == sum(
            len(figures[name]) for name in ("rows", "lengths", "routes")
        )

    def test_tables(self, figures: dict[str, Any], tmp_path: Path) -> None:
        page = (tmp_path / "report" / "comparison.md").read_text()
        for title in ("Accuracy, semantic", "Accuracy, voice", "Accuracy, all", "Agreement, all", "Cost",
                      "Audio of 2 s", "known against others, all",
                      "Evidence recall", "Answers that are none", "Applied ratio", "Thirds", "Routes"):  # fmt: skip
            assert f"## {title}" in page
        assert f"`{figures['command']}`" in page
        section = page.split("## Applied ratio")[1].split("##")[0]
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line]
        assert lines[0] == ["method", "1", "0.5", "0.2"]
        assert [line[0] for line in lines[2:]] == ["unpruned", *(method["name"] for method in METHODS)]
        assert lines[3] == ["random", "", "0.4840", "0.2000"]  # of 5 questions, 4 with 12 of 25 tokens
        for name in ("rows", "lengths", "tests"):
            with open(tmp_path / "report" / f"{name}.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            assert len(rows) == len(figures[name])
            for row, want in zip(rows, figures[name], strict=True):
                flat = {k: v for k, v in want.items() if not isinstance(v, list)}
                assert {k: row[k] for k in flat} == {k: "" if v is None else str(v) for k, v in flat.items()}
        assert (rows[0]["ci95_1"], rows[0]["ci95_2"]) == tuple(map(str, figures["tests"][0]["ci95"]))

    def test_printed(self, figures: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        write_report(figures, Path(figures["command"].split()[-1]).parent / "again")
        printed = capsys.readouterr().out.partition("Written: ")[0].rstrip()
        assert "## Accuracy, all, n = 5" in printed
        assert "## Cost" in printed
        assert "against others" not in printed  # long, and on the page
        page = (Path(figures["command"].split()[-1]).parent / "again" / "comparison.md").read_text()
        assert all(table in page for table in printed.split("\n\n") if table.startswith("| "))
        assert "never gets them right: transcription." in page

    def test_nothing_of_an_earlier_report_stays(self, figures: dict[str, Any], tmp_path: Path) -> None:
        folder = tmp_path / "report"
        (folder / "routes.png").touch()
        before = {path.name for path in folder.iterdir()}
        write_report({**figures, "tests": [], "routes": []}, folder)
        assert before - {path.name for path in folder.iterdir()} == {"tests.csv", "routes.png"}

    def test_figures(self, figures: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pyplot = pytest.importorskip("matplotlib.pyplot")
        names = ("accuracy", "agreement", "percent", "cost", "recall", "routes")
        for name in names:
            assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        found: list[Any] = []
        monkeypatch.setattr(pyplot, "close", found.append)
        paths = draw(figures, tmp_path / "some", ["random", "routed"])
        assert [path.stem for path in paths] == [*names]
        accuracy, routes = found[0], found[-1]
        assert [axis.get_title() for axis in accuracy.axes] == ["voice, n = 3", "semantic, n = 2", "all, n = 5"] or [
            axis.get_title() for axis in accuracy.axes
        ] == ["semantic, n = 2", "voice, n = 3", "all, n = 5"]
        assert [text.get_text() for text in accuracy.legends[0].get_texts()] == ["random", "routed"]
        axis = accuracy.axes[-1]
        rows = [row for row in figures["rows"] if (row["task"], row["type"]) == ("mean", "all")]
        line = sorted((r for r in rows if r["method"] in ("unpruned", "random")), key=lambda r: r["applied_ratio"])
        assert axis.lines[0].get_xdata().tolist() == [row["applied_ratio"] for row in line]
        assert axis.lines[0].get_ydata().tolist() == [row["accuracy"] for row in line]
        assert len(axis.collections) == 2  # bands
        assert len(routes.axes) == 2


class TestSettings:
    @pytest.mark.parametrize(
        ("methods", "message"),
        [
            ([], "no methods"),
            ([{"name": "a"}], "lacks scorer"),
            ([{"name": "a", "scorer": "stride", "ruoter": "joint"}], "Did you mean 'router'"),
            ([{"name": "a", "scorer": "stride"}] * 2, "Two methods are named 'a'"),
            ([{"name": "a", "scorer": "strode"}], "Unknown scorer 'strode'. Did you mean 'stride'"),
            ([{"name": "a", "scorer": "stride", "router": "joint"}], "does not take router"),
            ([{"name": "a", "scorer": "fastv", "seeds": [1]}], "does not take seed"),
            ([{"name": "a", "scorer": "headrouter", "profile": "none"}], "Unknown profile"),
            ([{"name": "a", "scorer": "nowhere.Scorer"}], "cannot import 'nowhere.Scorer'"),
            ([{"name": "a", "scorer": "json.dumps", "init_args": {"obj": 1}}], "gives no scorer"),
            ([{"name": "a", "scorer": "headrouter", "types": {"voice": "voice"}}], "questions of type semantic"),
            ([{"name": "a", "scorer": "stride", "layer": 9}], "layer=9 is out of range"),
        ],
    )
    def test_methods_that_cannot_run(
        self, questions: PocketBenchmark, tmp_path: Path, methods: list[dict[str, Any]], message: str
    ) -> None:
        with pytest.raises(HeadRouterError, match=message):
            run(tmp_path, methods=methods)
        assert not (tmp_path / "log.jsonl").exists()

    def test_a_missing_profile_is_told_before_recordings_are_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(PocketBenchmark, "open", lambda split: pytest.fail("opened"))
        for method, message in (("a.safetensors", "There is no profile a.safetensors"), ("self", "opened")):
            with pytest.raises((HeadRouterError, pytest.fail.Exception), match=message):
                run(tmp_path, methods=[{"name": "a", "scorer": "headrouter", "profile": method}])

    def test_names_that_nobody_has(self, questions: PocketBenchmark, tmp_path: Path) -> None:
        for option in ("tested", "drawn"):
            with pytest.raises(HeadRouterError, match=r"Unknown method 'stryde'\. Did you mean 'stride'"):
                run(tmp_path, **{option: ["stryde"]})
        with pytest.raises(HeadRouterError, match=r"no questions about scenes of \[7\] s; there are"):
            run(tmp_path, lengths=[7])

    def test_ratios(self) -> None:
        assert read_ratios([0.1, 1.0, 0.5]) == [0.5, 0.1]
        assert read_ratios(KEEP_RATIOS) == [0.9, 0.7, 0.5, 0.3, 0.2, 0.1]
        for wrong in ([], [0.5, 0.5], [0.0], [1.5]):
            with pytest.raises(HeadRouterError, match="keep_ratios must differ"):
                read_ratios(wrong)


BASELINES = {"random", "stride", "fastv", "fastv without rotary", "segmentwise", "dart"}
CONTROLS = {"one pass, true type", "one pass, swapped", "linear probe", "oracle"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("compare_pocket", BASELINES | CONTROLS),
        ("compare_pocket_quick", BASELINES | CONTROLS - {"linear probe"}),
        ("compare_pocket_controls", CONTROLS | {"self", "random, five seeds"}),
        ("compare_pocket_probe", {"one pass", "one pass, true type", "linear probe", "oracle"}),
        ("compare_pocket_long", {"stride", "dart", "scout", "one pass"}),
        ("compare_evict_early", {"one pass", "scout", "stride"}),
    ],
)
def test_shipped_configurations(name: str, wanted: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    with pytest.raises(SystemExit) as caught:
        main(["compare", "--config", str(path), "--print_config"])
    assert caught.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    methods = read_methods(config["methods"])
    names = {method.name for method in methods}
    assert {*config["tested"], *(config["drawn"] or ())} <= names
    assert read_ratios(config["keep_ratios"])
    assert wanted <= names
    # No baseline prunes earlier than the form in the model's own pass.
    assert {method.layer for method in methods if method.name in BASELINES | {"generic", "one pass"}} == {3}
    if name in {"compare_pocket", "compare_pocket_controls"}:
        for weights in ("selectivity", "utility", "one pass", "headrouter", "headrouter deep"):
            first = next(method for method in methods if method.name.startswith(weights))
            routed = {method.routing for method in methods if method.profile == first.profile}
            assert {"joint", "prompt", "selectivity", "true"} <= {way or "joint" for way in routed}, weights
    if name == "compare_evict_early":
        late, early = (
            [{**vars(m), "name": "", "evict_early": None} for m in methods if m.evict_early is given]
            for given in (False, True)
        )
        assert late == early
        assert set(config["tasks"]) == {name for name, task in QUESTION_TASKS.items() if task.type == "semantic"}


class Profiled(StrideScorer):
    """Takes a profile, and has no head weights."""

    def __init__(self, profile: str) -> None: ...


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"seeds": 5}, "seeds must be a list of numbers, got 5"),
        ({"types": ["voice"]}, r"types must be a mapping of a question's type to a profile's, got \['voice'\]"),
        ({"layer": "3"}, "layer must be a number, got '3'"),
        ({"init_args": [1]}, r"init_args must be a mapping, got \[1\]"),
    ],
)
def test_settings_of_another_kind(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_methods([{"name": "r", "scorer": "random", **setting}])


def test_methods_are_values() -> None:
    (method,) = read_methods([{"name": "r", "scorer": "random", "seeds": [3]}])
    assert method == Method("r", "random", seeds=[3])
    assert build_scorer(method, 3).seed == 3  # type: ignore[attr-defined]


class DrawsOnce(StrideScorer):
    """Takes a seed, and keeps none that could be set for each question."""

    def __init__(self, seed: int) -> None: ...


def test_seeds_must_reach_the_scorer() -> None:
    (method,) = read_methods([{"name": "r", "scorer": f"{__name__}.DrawsOnce", "seeds": [3]}])
    with pytest.raises(HeadRouterError, match="no attribute seed"):
        build_scorer(method, 3)


class ScoresOneTokenAs(StrideScorer):
    """The first token of a recording, for the second of its questions."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.types: list[str] = []

    def score(self, inputs: ScoringInputs) -> torch.Tensor:
        scores = torch.ones(inputs.audio_mask.shape)
        scores[:, 0] = self.value if self.types == ["semantic"] else 1.0
        return scores


def test_scores_that_are_not_numbers_are_no_answers(questions: PocketBenchmark, tmp_path: Path) -> None:
    def method(value: float) -> dict[str, Any]:
        return {"name": "mine", "scorer": f"{__name__}.ScoresOneTokenAs", "init_args": {"value": value}}

    with pytest.raises(HeadRouterError, match=r"test/\d/transcription: scores of the method 'mine' are NaN"):
        run(tmp_path, methods=[method(float("nan"))])
    rows = [row for row in read(tmp_path / "log.jsonl") if row["method"] == "mine"]
    assert {row["task"] for row in rows} == {"gender"}
    for name in ("inf", "-inf"):
        assert run(tmp_path, name, methods=[method(float(name))])["questions"] == 5


def test_attention_that_is_not_a_number_is_no_answer(
    questions: PocketBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    with torch.no_grad():
        model.model.language_model.layers[1].self_attn.q_proj.weight[0, 0] = torch.nan
    monkeypatch.setattr(command, "load_model", lambda *_: (model, make_processor()))
    with pytest.raises(HeadRouterError, match=r"test/\d/\w+: scores of the method 'routed' are NaN"):
        run(tmp_path, methods=METHODS[1:3])


def test_a_draw_of_its_own_for_each_question_and_seed(questions: PocketBenchmark) -> None:
    methods = read_methods([{"name": "random", "scorer": "random", "seeds": [0, 1], "layer": 2}])
    runner = MethodRunner(build(), make_processor(), methods, [0.3], ["semantic", "voice"])
    first, second = (item for item in questions.items if item.audio == questions.items[0].audio)
    encoded = runner.prompter.encode(noise(int(first.audio[0]), first.seconds))

    def kept(number: int, item: PocketItem) -> list[int]:
        inputs = runner.prompter.inputs(encoded, item.prompt)
        with encoded_audio(runner.model):
            return runner.answer_pruned(runner.runs[number], item, encoded, inputs, 1)[2].kept.tolist()

    draws = [kept(number, item) for number in (0, 1) for item in (first, second)]
    assert len({tuple(draw) for draw in draws}) == 4
    assert [kept(number, item) for number in (0, 1) for item in (first, second)] == draws
