"""What sdist and wheel hold, and that the wheel works by itself."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
import yaml

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("build", "hatchling", "hatch_vcs"))),
        reason="pip install 'headrouter-pl[dev]'",
    ),
]

# Of each kind that is not code, what must not be missing.
NEEDED = {
    "py.typed",
    "models/pocket_adapter/adapter_config.json",
    "models/pocket_adapter/adapter_model.safetensors",
    "models/pocket_adapter/card.json",
    "models/pocket_adapter/projector.safetensors",
    "pictures/assets/gallery.css",
    "pictures/assets/gallery.html",
    "pictures/assets/gallery.js",
    "profiles/shipped/README.md",
    "routers/prompts.jsonl",
    "routers/prompts_heldout.jsonl",
}
SUFFIXES = {".css", ".html", ".js", ".json", ".jsonl", ".md", ".py", ".safetensors", ".typed"}
MOST_BYTES = 40 * 2**20


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of this checkout, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> zipfile.ZipFile:
    return zipfile.ZipFile(built[1])


@pytest.fixture(scope="module")
def version(built: tuple[Path, Path]) -> str:
    return built[1].name.split("-")[1]


def metadata(wheel: zipfile.ZipFile, version: str) -> Message:
    return Parser().parsestr(wheel.read(f"headrouter_pl-{version}.dist-info/METADATA").decode())


def in_package() -> set[str]:
    files = (path for path in (ROOT / "headrouter_pl").rglob("*") if path.is_file())
    return {path.relative_to(ROOT / "headrouter_pl").as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile, version: str) -> None:
    names = set(wheel.namelist())
    inside = {name.removeprefix("headrouter_pl/") for name in names if name.startswith("headrouter_pl/")}
    assert inside == in_package()
    assert inside >= NEEDED
    # Profiles that are shipped come as files like these; recordings and checkpoints do not.
    assert {PurePosixPath(name).suffix or PurePosixPath(name).name for name in inside} <= SUFFIXES
    others = {name for name in names if not name.startswith(("headrouter_pl/", f"headrouter_pl-{version}.dist-info/"))}
    assert not others
    assert sum(file.file_size for file in wheel.infolist()) < MOST_BYTES


def test_weights_are_whole(wheel: zipfile.ZipFile) -> None:
    """Not pointers of a large-file store."""
    for name in wheel.namelist():
        if name.endswith(".safetensors"):
            assert wheel.read(name) == (ROOT / name).read_bytes()
            assert len(wheel.read(name)) > 1000


def test_metadata(wheel: zipfile.ZipFile, version: str) -> None:
    found = metadata(wheel, version)
    assert (found["Name"], found["Version"], found["License-Expression"]) == ("headrouter-pl", version, "Apache-2.0")
    assert found.get_all("License-File") == ["LICENSE"]
    licence = wheel.read(f"headrouter_pl-{version}.dist-info/licenses/LICENSE")
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert set(found.get_all("Provides-Extra") or ()) == {"demo", "dev", "docs", "eval", "test"}
    entry_points = wheel.read(f"headrouter_pl-{version}.dist-info/entry_points.txt").decode()
    assert "headrouter-pl = headrouter_pl.cli:console" in entry_points


def test_the_sdist_is_the_source(built: tuple[Path, Path], version: str) -> None:
    with tarfile.open(built[0]) as archive:
        names = {member.name.removeprefix(f"headrouter_pl-{version}/") for member in archive if member.isfile()}
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "mkdocs.yml"):
        assert name in names
    assert {name.removeprefix("headrouter_pl/") for name in names if name.startswith("headrouter_pl/")} == in_package()
    tops = {name.split("/")[0] for name in names if "/" in name}
    assert tops == {"headrouter_pl", "tests", "configs", "docs"}
    audio = {".wav", ".mp3", ".flac", ".ogg", ".ckpt", ".pt"}
    assert not [name for name in names if PurePosixPath(name).suffix in audio or "outputs/" in name]


def test_the_wheel_works_by_itself(wheel: zipfile.ZipFile, version: str, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    (tmp_path / "elsewhere").mkdir()

    def run(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, *args], env=env, cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    code = (
        "import headrouter_pl; from headrouter_pl import PromptRouter; from headrouter_pl.pictures import Gallery;"
        "print(headrouter_pl.__file__); print(*PromptRouter.default().predict(['Transcribe the speech.']))"
    )
    place, family = run("-c", code).split()
    assert Path(place).is_relative_to(tmp_path / "site")
    assert family == "semantic"
    assert run("-m", "headrouter_pl", "--version").strip() == version


def test_the_version_is_the_tag(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)

    def run(*command: str) -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "SETUPTOOLS_SCM"))}
        env |= {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    def commit(message: str) -> None:
        author = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        run("git", *author, "commit", "--quiet", "--allow-empty", "--no-verify", "--no-gpg-sign", "-m", message)

    hatchling_version = (sys.executable, "-m", "hatchling", "version")
    assert run(*hatchling_version) == "0.1.dev0"  # no repository
    run("git", "init", "--quiet")
    run("git", "add", ".")
    commit("one")
    assert run(*hatchling_version) == f"0.1.dev1+g{run('git', 'rev-parse', '--short=9', 'HEAD')}"  # no tag
    run("git", "tag", "v9.8.7")
    assert run(*hatchling_version) == "9.8.7"
    commit("two")
    assert run(*hatchling_version).startswith("9.8.8.dev1+g")


def test_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", citation["version"])  # scripts/check_release.sh compares it with the tag
    assert citation["title"].startswith("headrouter-pl")
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2604.23717"
    assert citation["authors"]
    assert citation["references"][0]["authors"]
