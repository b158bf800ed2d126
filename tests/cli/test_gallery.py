"""``headrouter-pl gallery`` on a tiny model and scenes of noise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_pocket import build, make_processor, make_questions, noise

from headrouter_pl.cli import gallery as command
from headrouter_pl.cli import main
from headrouter_pl.cli.method_runner import read_methods, read_ratios
from headrouter_pl.data.pocket.benchmark import PocketBenchmark
from headrouter_pl.errors import ConfigurationError, HeadRouterError, UnknownNameError
from headrouter_pl.models.answering import AudioReader

torch.set_num_threads(1)

METHODS = [
    {"name": "sharp", "scorer": "headrouter", "profile": "sharp"},
    {"name": "random", "scorer": "random", "seeds": [3, 4]},
]
CONFIG = Path(__file__).parents[2] / "configs" / "gallery_pocket.yaml"


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PocketBenchmark:
    made = make_questions(tmp_path)
    monkeypatch.setattr(PocketBenchmark, "open", lambda split: made)
    monkeypatch.setattr(command, "load_model", lambda weights, checkpoint, dtype: (build().to(dtype), make_processor()))
    monkeypatch.setattr("headrouter_pl.cli.method_runner.MAX_NEW_TOKENS", 4)
    return made


def read(path: Path) -> dict[str, Any]:
    page = path.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def test_page_of_the_command(questions: PocketBenchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "gallery.html"
    config = {"methods": METHODS, "keep_ratios": [0.2, 0.6], "dtype": "float32", "max_questions": 4,
              "output": str(output)}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["gallery", "--config", str(tmp_path / "config.yaml")])
    assert f"{output}: 4 questions" in capsys.readouterr().out
    page = read(output)
    items = {item.key: item for item in questions.items}
    assert len(page["index"]["samples"]) == 4
    reader = AudioReader(build(), make_processor(), 4)
    for number, entry in enumerate(page["index"]["samples"]):
        item, sample = items[entry["key"]], page[f"s{number}"]
        assert (entry["question"], entry["kind"]) == (item.prompt, f"{item.type}, {item.task}")
        assert [view[:2] for view in entry["views"]] == [
            [name, ratio] for name in ("sharp", "random") for ratio in (0.6, 0.2)
        ]
        assert sample["answer"] == "w9"
        assert sample["evidence"] == [[0.0, 1.0]]
        assert sample["unpruned"] == reader.answer(reader.read(noise(int(item.audio[0]), item.seconds)), item.prompt)
        for view in sample["views"]:
            assert sum(view["kept"]) == sample["tokens"] == round(25 * item.seconds)
            assert sum(view["kept"][1::2]) == view["count"] == round(view["ratio"] * sample["tokens"])
        assert set(sample["views"][0]["route"]) == {"posterior", "prompt", "audio"}
        assert sample["views"][2]["route"] is None
    media = [page[f"s{number}"]["media"] for number in range(4)]
    assert len(set(media)) == len({items[entry["key"]].audio for entry in page["index"]["samples"]})


def test_the_shipped_configuration_is_one() -> None:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert set(config) <= set(command.gallery.__annotations__)
    assert len(read_methods(config["methods"])) == 4
    assert read_ratios(config["keep_ratios"])


def test_refusals(questions: PocketBenchmark) -> None:
    with pytest.raises(ConfigurationError, match="below 1"):
        command.gallery(METHODS, [1.0])
    with pytest.raises(ConfigurationError, match="max_questions"):
        command.gallery(METHODS, max_questions=0)
    with pytest.raises(UnknownNameError, match="fastv"):
        command.gallery([{"name": "x", "scorer": "fastw"}])
    with pytest.raises(HeadRouterError, match=r"no questions about scenes of \[7\] s; there are"):
        command.gallery(METHODS, lengths=[7])
