"""What mkdocs does beyond its configuration: late pages, links to source files, formulas without JavaScript."""

from __future__ import annotations

import html
import re
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert

LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s]+)\)")
FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Pages that the navigation does not list yet come last."""
    listed = {path for entry in config.nav for path in entry.values()}
    config.nav.extend(path.name for path in sorted(Path(config.docs_dir).glob("*.md")) if path.name not in listed)
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files outside of docs, which work in the repository, become their names: the site has only docs."""

    def name(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path = PurePosixPath(target.split("#")[0].removeprefix("../"))
        if not (Path(config.docs_dir).parent / path).exists():
            raise ValueError(f"{page.file.src_path} links to {target}, which is not there")
        return text if text.strip("`") == str(path) else f"{text} (`{path}`)"

    return LINK.sub(name, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Formulas become MathML."""

    def mathml(formula: re.Match[str]) -> str:
        display = "block" if formula["tag"] == "div" else "inline"
        return convert(html.unescape(formula["tex"]).strip(), display=display)

    return FORMULA.sub(mathml, content)
