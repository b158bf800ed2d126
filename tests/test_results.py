"""Results on disk survive any interruption, and are not mixed with those of another run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.results import ResultsLog, check_output, json_lines, parse_json_lines, write_text

CONFIGURATION = {"weights": "12ab", "ratios": (0.5, 0.1)}  # a tuple comes back as a list
ROWS = [{"key": "a", "text": "señor\u2028x"}, {"key": "b", "text": "two"}, {"key": "c", "text": ""}]


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    log = ResultsLog(tmp_path / "whole" / "log.jsonl", CONFIGURATION)
    log.add(ROWS[:1])
    log.add(ROWS[1:])
    return (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_a_file_cut_anywhere_is_gone_on_with(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        log = ResultsLog(path, CONFIGURATION)
        assert list(log.rows.values()) == ROWS[: max(whole[:length].count(b"\n") - 1, 0)]
        log.add([row for row in ROWS if row["key"] not in log.rows])
        assert path.read_bytes() == whole
        assert list(log.rows.values()) == ROWS


@pytest.mark.parametrize("torn", [b'{"key": "d', b'{"key": "d", "text": "' + b"x" * 10_000])
def test_what_another_process_left_of_a_line_spoils_nothing(whole: bytes, tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(whole)
    log = ResultsLog(path, CONFIGURATION)
    path.write_bytes(whole + torn)
    log.add([{"key": "e"}])
    assert path.read_bytes() == whole + b'{"key": "e"}\n'
    assert [*ResultsLog(path, CONFIGURATION).rows] == ["a", "b", "c", "e"]


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    log = ResultsLog(tmp_path / "log.jsonl", CONFIGURATION)
    for count, row in enumerate(ROWS, start=1):
        log.add([row])
        lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").split("\n")
        assert [json.loads(line) for line in lines[1:-1]] == ROWS[:count]


def test_without_a_file() -> None:
    log = ResultsLog(None, CONFIGURATION)
    log.add(ROWS)
    assert [*log.rows] == ["a", "b", "c"]


def test_another_run_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(whole + b'{"key": "d')
    for other in ({**CONFIGURATION, "ratios": (0.5,)}, {"weights": "12ab"}, {**CONFIGURATION, "seed": 1}):
        with pytest.raises(HeadRouterError, match=r"of another run: other (ratios|seed)"):
            ResultsLog(path, other)
    assert path.read_bytes() == whole + b'{"key": "d'


def test_what_may_grow_grows(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def open_log(seed: int, **methods: str) -> ResultsLog:
        return ResultsLog(path, {"seed": seed, "methods": methods}, grows=("methods",))

    open_log(0, a="x", b="y").add(ROWS[:2])
    path.write_bytes(path.read_bytes() + b'{"key": "d')
    log = open_log(0, c="z", b="y")
    assert list(log.rows.values()) == ROWS[:2]
    log.add(ROWS[2:])
    before = path.read_bytes()
    assert list(open_log(0, a="x").rows.values()) == ROWS
    assert path.read_bytes() == before
    assert json.loads(before.split(b"\n")[0])["configuration"]["methods"] == {"a": "x", "b": "y", "c": "z"}
    for other, message in (((0, {"a": "y", "c": "z"}), r"other methods \(a\)\."), ((1, {"a": "x"}), "other seed")):
        with pytest.raises(HeadRouterError, match=message):
            open_log(other[0], **other[1])
    path.write_text('{"configuration": {"seed": 0, "methods": [1]}}\n')
    with pytest.raises(HeadRouterError, match="does not hold results"):
        open_log(0, a="x")


def test_a_second_run_on_the_file_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    one = ResultsLog(path, {"methods": {"a": "x"}}, grows=("methods",))
    one.add(ROWS[:1])
    other = ResultsLog(path, {"methods": {"b": "y"}}, grows=("methods",))  # writes the file anew
    one.add(ROWS[1:2])
    other.add(ROWS[2:])
    assert list(ResultsLog(path, {"methods": {}}, grows=("methods",)).rows.values()) == ROWS


@pytest.mark.parametrize(
    "content", ['{"configuration"} \n', '{"a": 1}\n', '{"configuration": 3}\n', "[]", "[1]\n", "x"]
)
def test_what_is_not_a_file_of_results_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(HeadRouterError, match="does not hold results"):
        ResultsLog(path, CONFIGURATION)
    assert path.read_text() == content


def test_json_lines() -> None:
    text = json_lines(ROWS)
    assert text.count("\n") == len(ROWS)
    assert "señor\u2028x" in text
    assert parse_json_lines(text) == parse_json_lines(f"\n{text}\n") == ROWS
    assert json_lines([]) == ""
    assert parse_json_lines("") == []
    with pytest.raises(ValueError, match="Expecting value"):
        parse_json_lines(f"{text}cut")


def test_write_text(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.md"
    for text in ("é\n", "two"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [*path.parent.iterdir()] == [path]


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "page.md", []
    path.write_text("one")

    def sync(number: int) -> None:
        assert path.read_text() == "one"
        synced.append(os.fstat(number).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    write_text(path, "two")
    assert path.read_text() == "two"
    assert synced == [path.stat().st_ino]


def test_check_output(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    check_output(path)
    assert [*path.parent.iterdir()] == []
    path.write_text("kept")
    check_output(str(path))
    assert path.read_text() == "kept"
    with pytest.raises(ConfigurationError, match=f"{path.parent} is a folder"):
        check_output(path.parent)
    for wrong in (path / "y", path / "new" / "y", tmp_path / ("y" * 255)):
        with pytest.raises(ConfigurationError, match=f"{wrong} cannot be written"):
            check_output(wrong)
