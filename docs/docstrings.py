"""Lets mkdocstrings, which reads Markdown, read the reStructuredText in the package's docstrings."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

ROLE = re.compile(r":(?:class|meth|func|attr|data|mod|obj):`(~?)([^`]+)`")


def to_markdown(text: str) -> str:
    """Turns roles, formulas and literal blocks into Markdown.

    Args:
        text: A docstring.
    """
    text = ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)
    text = re.sub(r":math:`([^`]+)`", r"\\(\1\\)", text)
    text = re.sub(r"\.\. math::\s*(.+)", r"\\[\1\\]", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r"^(Example)::$", r"*\1*", text, flags=re.MULTILINE)


class Docstrings(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """See :func:`to_markdown`."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
