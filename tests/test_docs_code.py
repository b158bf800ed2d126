"""What the documentation tells people to type: Python blocks run, commands parse, configurations are read.

A page's Python blocks share their names, as a reader's session would; ``support/page_names.py`` says which others they
may use. A block that cannot run here stands under a comment ``<!-- not run: why -->``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from page_names import make_names, stand_in, write_recordings

from headrouter_pl.cli import COMMANDS, TRAINER_COMMANDS, main
from headrouter_pl.models import families, pocket, pocket_weights
from headrouter_pl.routers import ROUTERS
from headrouter_pl.scorers import SCORERS
from headrouter_pl.tasks import TASKS

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
MOST_NOT_RUN = 4  # blocks of all pages; a block that nobody runs rots
PLACEHOLDERS = {"CONFIG": "configs/audiomarathon_qwen2_5_omni_3b.yaml"}

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n\s*)?^```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    code: str
    why: str | None  # it is not run

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start("code")) + 1, found["kind"], found["code"], found["why"])
        for found in BLOCK.finditer(text)
    ]


def run(page: Path, names: dict[str, Any]) -> int:
    """Runs the Python blocks of a page; gives how many there were."""
    count = 0
    for block in blocks(page):
        if block.kind == "python" and block.why is None:
            # Blank lines before it, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
            count += 1
    return count


def every(kind: str) -> list[Block]:
    return [block for page in PAGES.values() for block in blocks(page) if block.kind == kind]


# Python


def before_evaluation(folder: Path, names: dict[str, Any]) -> None:
    """A run's answers, and the questions of MMAU-Pro that they are to."""
    pandas = pytest.importorskip("pandas")
    rows = [{"key": "0", "answer": "B", "text": "B"}, {"key": "1", "answer": None, "text": "a bell rings"}]
    run = folder / "outputs" / "mmau_pro_qwen2_5_omni_3b"
    run.mkdir(parents=True)
    (run / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    frame = {"choices": [["a dog", "a bell"], None], "category": ["sound", "open"]}
    pandas.DataFrame(frame).to_parquet(folder / "test.parquet")


BEFORE = {"evaluation.md": before_evaluation}


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers on the CPU, without bars. Not for commands, which read Trainer's own arguments."""
    init = L.Trainer.__init__

    def quiet(self: L.Trainer, **settings: Any) -> None:
        settings = {"accelerator": "cpu", "devices": 1, "logger": False, **settings}
        init(self, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **settings)

    monkeypatch.setattr(L.Trainer, "__init__", quiet)


@pytest.fixture
def _registries() -> Iterator[None]:
    """As they were: pages show how to add to them."""
    registries: list[dict[str, Any]] = [SCORERS, ROUTERS, TASKS, families.FAMILIES]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.usefixtures("_quiet", "_registries")
@pytest.mark.parametrize("name", dict.fromkeys(block.page.name for block in every("python")))
def test_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "page", **make_names()}
    for module, loader in ((pocket_weights, "load_trained_pocket"), (pocket, "load_pocket")):
        monkeypatch.setattr(module, loader, stand_in(getattr(module, loader), names))
    write_recordings(tmp_path)
    if name in BEFORE:
        BEFORE[name](tmp_path, names)
    run(PAGES[name], names)


def test_no_block_is_overlooked() -> None:
    for page in PAGES.values():
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(blocks(page)), page.name
        # Others would neither run nor be told apart.
        kinds = {block.kind for block in blocks(page)}
        assert kinds <= {"python", "bash", "yaml", "json", "text", "mermaid"}, page.name
        assert text.count("<!-- not run") == sum(block.why is not None for block in blocks(page)), page.name
    assert sum(block.why is not None for block in every("python")) <= MOST_NOT_RUN


@pytest.mark.parametrize(
    ("code", "error"),
    [("x = 1\nassert x == 2", AssertionError), ("model.no_such_method()", AttributeError), ("x = (", SyntaxError)],
)
def test_a_broken_block_fails_and_says_where(code: str, error: type[Exception], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marked = "<!-- not run: broken on purpose -->\n```python\n1 / 0\n```\n"
    page.write_text(f"# Title\n\n```python\nx = 0\n```\n\n{marked}\n```python\n{code}\n```\n", encoding="utf-8")
    assert [(block.line, block.why) for block in blocks(page)] == [(4, None), (9, "broken on purpose"), (13, None)]
    with pytest.raises(error) as caught:
        run(page, {"model": object()})
    if error is not SyntaxError:
        assert caught.traceback[-1].lineno + 1 == 12 + len(code.splitlines())
        assert str(caught.traceback[-1].path) == str(page)
    page.write_text(page.read_text(encoding="utf-8").replace(code, "x += 1"), encoding="utf-8")
    assert run(page, {}) == 2


# Commands


class Parsed(Exception):  # noqa: N818 (no error)
    """The command line is one that would run."""


def commands(block: Block) -> Iterator[list[str]]:
    """The arguments of each ``headrouter-pl`` in a block of shell lines."""
    for line in block.code.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[;|](?![^'\"]*['\"])", line):
            words = [PLACEHOLDERS.get(word, word) for word in shlex.split(part, comments=True)]
            if words[:1] == ["headrouter-pl"]:
                yield words[1:]


def parse(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Does what the command does, up to where it would begin to work."""
    parse_args = ArgumentParser.parse_args
    depth = 0  # parsers of subcommands parse inside of others

    def parse_and_stop(self: ArgumentParser, *given: Any, **settings: Any) -> Any:
        nonlocal depth
        depth += 1
        found = parse_args(self, *given, **settings)
        depth -= 1
        if not depth:
            raise Parsed
        return found

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Parsed):
        main(args)


TOLD = {" ".join(args): args for block in every("bash") for args in commands(block)}


@pytest.mark.parametrize("line", TOLD)
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(TOLD[line], monkeypatch)


@pytest.mark.parametrize("line", ["demo --keep_rato 0.5", "validate --config configs/no_such.yaml", "gallry"])
def test_a_wrong_command_fails(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(line.split(), monkeypatch)


def test_commands_in_sentences_exist() -> None:
    for page in PAGES.values():
        for line in re.findall(r"`headrouter-pl\s+([a-z]\S*)", page.read_text(encoding="utf-8")):
            assert line.rstrip("`").split("`")[0] in (*COMMANDS, *TRAINER_COMMANDS), f"{page.name}: {line}"


@pytest.mark.parametrize("block", every("yaml"), ids=lambda block: block.name)
def test_configurations_are_read(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for a Trainer, on top of one that names model and data."""
    assert "trainer" in yaml.safe_load(block.code), "say how this block is to be tested"
    path = tmp_path / "block.yaml"
    path.write_text(block.code, encoding="utf-8")
    parse(["validate", "--config", "configs/validate_jsonl.yaml", "--config", str(path)], monkeypatch)
