"""Results of a long run, on disk as soon as they are there, from which a run that was stopped goes on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from headrouter_pl.errors import ConfigurationError, HeadRouterError

__all__ = [
    "ResultsLog",
    "check_output",
    "format_table",
    "json_lines",
    "move",
    "parse_json_lines",
    "replacing",
    "write_text",
]


class ResultsLog:
    """Rows by their ``"key"``, in a file of JSON lines whose first line says what run they are of.

    Only whole lines count: what a killed run left of a line is cut off, and everything before it is kept. Runs that
    share a file take turns by a lock, ``PATH.lock``.

    Args:
        path: The file, made if there is none; None keeps the rows in memory alone.
        configuration: All that the rows depend on, as JSON values. A file with another one is refused.
        grows: Entries of it that are mappings, whose keys may differ between runs: those that both have must have
            equal values. The file keeps the keys of all runs.

    Attributes:
        rows: Key -> row, those of an earlier run included, in the order in which they were added.

    Raises:
        HeadRouterError: If the file is of another run, or no such file. It is left as it was.
    """

    def __init__(self, path: str | Path | None, configuration: Mapping[str, Any], grows: Collection[str] = ()) -> None:
        self.path = None if path is None else Path(path)
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._open(self.path, configuration, grows)

    def _lock(self) -> FileLock:
        """Keeps what another process adds meanwhile from being lost."""
        return FileLock(f"{self.path}.lock")

    def _open(self, path: Path, configuration: Mapping[str, Any], grows: Collection[str]) -> None:
        header = json.dumps({"configuration": configuration}) + "\n"
        found = path.read_bytes() if path.is_file() else b""
        if header.encode().startswith(found):  # none, or of a run killed at once
            write_text(path, header)
            return
        whole = found[: found.rfind(b"\n") + 1]
        try:
            lines = parse_json_lines(whole.decode("utf-8"))
            was, rows = lines[0]["configuration"], {row["key"]: row for row in lines[1:]}
            now = json.loads(header)["configuration"]  # with lists for tuples, as in the file
            grown = {name: {**was[name], **now[name]} for name in grows}
            wrong = _differing(was, now, grows)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise HeadRouterError(f"{path} does not hold results of a run: {error!r}") from error
        if wrong:
            raise HeadRouterError(
                f"{path} has results of another run: other {', '.join(wrong)}. Name another file, or remove it."
            )
        if grown == {name: was[name] for name in grows}:
            os.truncate(path, len(whole))
        else:
            answers = whole[whole.index(b"\n") + 1 :].decode("utf-8")
            write_text(path, json.dumps({"configuration": {**now, **grown}}) + "\n" + answers)
        self.rows = rows

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows, each with a ``"key"`` of its own; they are on disk when this returns."""
        self.rows.update((row["key"], dict(row)) for row in rows)
        if self.path is not None:
            with self._lock(), open(self.path, "rb+") as out:
                _cut_torn_line(out)  # of another process that was killed meanwhile
                out.write(json_lines(rows).encode())
                out.flush()
                os.fsync(out.fileno())


def _cut_torn_line(file: BinaryIO) -> None:
    """Takes off what follows the last line break of a file, and leaves its position at the end."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 4096)
        file.seek(start)
        tail = file.read(size - start)
    file.truncate(start + tail.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _differing(was: Mapping[str, Any], now: Mapping[str, Any], grows: Collection[str]) -> list[str]:
    """What two configurations tell differently, by name."""
    wrong = []
    for name in {**was, **now}:
        if name in grows:
            parts = [part for part in now[name] if part in was[name] and now[name][part] != was[name][part]]
            wrong += [f"{name} ({', '.join(parts)})"] if parts else []
        elif was.get(name) != now.get(name):
            wrong.append(name)
    return wrong


def json_lines(rows: Iterable[Any]) -> str:
    """Rows of JSON values as text, each on a line of its own; what is not ASCII stays as it is."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parse_json_lines(text: str) -> list[Any]:
    """The rows of JSON lines, without the empty ones.

    Raises:
        ValueError: If a line is not JSON.
    """
    # Not splitlines(): it also breaks at U+2028 and the like, which JSON may leave unescaped inside a string.
    return [json.loads(line) for line in text.split("\n") if line]


def check_output(path: str | Path) -> None:
    """Refuses a file that could not be written, before a long run whose end it is for. Makes its folder.

    Raises:
        ConfigurationError: If it is a folder, or its own cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}."):
            pass
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}. Name another file.") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A scratch file to write instead of ``path``: at the end of the block it takes that name, or is gone if one fails.

    Yields:
        Its path, in the same folder; there is no file yet.
    """
    scratch = Path(f"{path}.{os.getpid()}.tmp")
    try:
        yield scratch
        move(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def move(scratch: Path, path: str | Path) -> None:
    """Gives a file that was written its name, which may be another's on the same disk."""
    with open(scratch, "rb+") as written:
        os.fsync(written.fileno())  # else a machine that fails may keep the name and lose the content
    os.replace(scratch, path)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file in one step, and its folder: a reader finds the old text or the new one, never a part."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


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
