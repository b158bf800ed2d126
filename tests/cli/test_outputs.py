"""Files that cannot be written are refused before anything slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrouter_pl.cli import main
from headrouter_pl.cli import pocket as commands
from headrouter_pl.data.pocket.benchmark import PocketBenchmark
from headrouter_pl.errors import ConfigurationError
from headrouter_pl.models import pocket_weights

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "command",
    [
        ["demo"],
        ["evaluate"],
        ["compare", "--config", str(CONFIGS / "compare_pocket_quick.yaml")],
        ["gallery", "--config", str(CONFIGS / "gallery_pocket.yaml")],
        ["benchmark", "--lengths", "[1]"],
    ],
    ids=lambda command: str(command[0]),
)
def test_refused_at_once(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((PocketBenchmark, "open"), (commands, "load_model"), (pocket_weights, "load_trained_pocket")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("it began"))
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match=r"folder\.json is a folder"):
        main([*command, "--output", str(folder)])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"x\.json cannot be written"):
        main([*command, "--output", str(tmp_path / "file" / "x.json")])
    if command[0] == "compare":
        with pytest.raises(ConfigurationError, match=r"folder\.json is a folder"):
            main([*command, "--details", str(folder)])
        with pytest.raises(ConfigurationError, match=r"comparison\.md cannot be written"):
            main([*command, "--details", str(tmp_path / "log"), "--folder", str(tmp_path / "file")])
