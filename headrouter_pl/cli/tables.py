"""Plain-text tables, figures as JSON, and a name for the machine figures were taken on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any


def format_table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table with aligned columns.

    Args:
        rows: One mapping a row, all with the same keys.

    Example:
        >>> print(format_table([{"scorer": "fastv", "kept": 3}]))
        | scorer | kept |
        |--------|------|
        | fastv  | 3    |
    """
    titles = list(rows[0])
    cells = [titles, *[[str(row[title]) for title in titles] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def dump_figures(figures: Mapping[str, Any]) -> str:
    """JSON with a line for each member of its lists of rows, and of its mappings to lists."""
    parts = []
    for name, value in figures.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            text = "[\n  " + ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n ]"
        elif isinstance(value, Mapping) and value and all(isinstance(entry, list) for entry in value.values()):
            lines = (f"{json.dumps(key)}: {json.dumps(rows, ensure_ascii=False)}" for key, rows in value.items())
            text = "{\n  " + ",\n  ".join(lines) + "\n }"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def machine() -> str:
    """The machine in words: its GPU, or its processor and the threads torch uses."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
