"""How many of the training recordings are heard in the windows that the pocket model is trained on?

Windows are drawn at random. What is not drawn is not learned from, however many windows there are; nothing is encoded.

    python benchmarks/training_clips.py --output docs/data/training_clips.json
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import yaml

from headrouter_pl.cli.tables import dump_figures, format_table
from headrouter_pl.data.pocket.clips import Clip
from headrouter_pl.data.pocket.library import ClipLibrary
from headrouter_pl.data.pocket.questions import LANGUAGES, is_named, role_of, voice_name
from headrouter_pl.data.pocket.training import PocketDataModule
from headrouter_pl.results import write_text


def groups_of(clip: Clip) -> Iterator[tuple[str, str]]:
    """What a recording is counted under: ``(kind of group, its name)``."""
    synthetic = clip.voice.startswith("synthetic/")
    if role := role_of(clip):
        yield "synthetic speech" if synthetic else "role", role
    if clip.kind == "speech" and not synthetic and role:
        if clip.language in LANGUAGES:
            yield "language", clip.language
        if is_named(clip.voice):
            yield "voice", voice_name(clip)


def main() -> None:
    """Draws, counts, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/pocket_lora.yaml", help="its windows are counted")
    parser.add_argument("--output", help="JSON")
    given = parser.parse_args()
    with open(given.config) as text:
        settings = yaml.safe_load(text)["data"]["init_args"]
    data = PocketDataModule(**{**settings, "encoder": None})  # what is drawn does not depend on it
    library = ClipLibrary.open()
    available: Counter[tuple[str, str]] = Counter()
    for clip, split in zip(library.clips, library.splits, strict=True):
        if split == "train":
            available.update(groups_of(clip))
    heard: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    times: Counter[tuple[str, str]] = Counter()
    for windows in data.encoded_windows(library, "train"):
        for event in (event for scene in windows.scenes for event in scene.events):
            for group in groups_of(library.clips[event.clip]):
                heard[group].add(event.clip)
                times[group] += 1
    rows: list[dict[str, Any]] = [
        {"of": kind, "name": name, "recordings": count, "heard": len(heard[kind, name]), "times": times[kind, name]}
        for (kind, name), count in sorted(available.items())
    ]
    print(format_table(rows))
    if given.output:
        figures = {
            "command": shlex.join(["python", *sys.argv]),
            "windows": sum(data.counts["train"].values()),
            "rows": rows,
        }
        write_text(given.output, dump_figures(figures))


if __name__ == "__main__":
    main()
