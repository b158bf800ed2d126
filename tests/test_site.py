"""The documentation's site builds without a warning, and needs no network to be read."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {path.stem for path in (ROOT / "docs").glob("*.md")}

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings", "latex2mathml"))),
    reason="pip install 'headrouter-pl[docs]'",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_is_there_and_found_from_the_first(site: Path) -> None:
    first = (site / "index.html").read_text(encoding="utf-8")
    assert {"index", "method", "engine", "profiles", "extending", "faq", "pictures", "api"} <= PAGES
    for name in PAGES:
        assert (site / f"{name}.html").is_file()
        assert f'href="{name}.html"' in first
    assert not list(site.glob("*.py"))


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*src=\"([^\"]*)\"", text)
        loaded += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preconnect|icon)\"[^>]*href=\"([^\"]*)\"", text)
        assert loaded
        assert not [link for link in loaded if re.match(r"(https?:)?//", link)], page.name


def test_formulas_and_docstrings_are_rendered(site: Path) -> None:
    method, reference = ((site / f"{name}.html").read_text(encoding="utf-8") for name in ("method", "api"))
    assert method.count("<math") > 20
    assert "arithmatex" not in method + reference
    for mark in (":class:", ":meth:", ":func:", ":data:", ":attr:", ":math:", ".. math::", "``"):
        assert mark not in reference, mark
    # A docstring with all of it: a formula, a role and a doctest.
    assert 'id="headrouter_pl.functional.probe_attention"' in reference
