"""``headrouter-pl data``: data sets made from what is installed."""

from __future__ import annotations

from typing import Any


def pocket(
    split: str = "test", scenes: int | None = None, seed: int = 0, install: bool = False, run: bool = False
) -> None:
    """Builds the Pocket benchmark: questions about scenes of real recordings, 8 to 300 s long.

    The recordings come from Debian packages. They are decoded once (minutes, about 2 GB) and cached.

    Args:
        split: ``test``, ``validation`` or ``train``; ``sealed`` for what is held back from development.
        scenes: Scenes of each length; as many as the split is meant to have if not given.
        seed: Of all choices.
        install: Print the line that installs the packages, and do nothing else.
        run: With ``--install``: run the line.
    """
    if install:
        return _install(run)
    if run:
        raise SystemExit("--run goes with --install")

    from headrouter_pl.cli.tables import format_table
    from headrouter_pl.data.pocket import PocketBenchmark

    benchmark = PocketBenchmark.open(split, scenes=scenes, seed=seed)
    found = benchmark.summary()
    types = {item.task: item.type for item in benchmark.items}
    rows: list[dict[str, Any]] = [
        {"task": task, "type": types[task]}
        | {f"{length} s": n for length, n in counts.items()}
        | {"all": sum(counts.values())}
        for task, counts in found["tasks"].items()
    ]
    sums = {column: sum(row[column] for row in rows) for column in list(rows[0])[2:]} if rows else {}
    print(format_table([*rows, {"task": "all", "type": ""} | sums]))
    kinds = {kind: sum(row["all"] for row in rows if row["type"] == kind) for kind in dict.fromkeys(types.values())}
    uses = ", ".join(f"{clips} in {audios}" for audios, clips in found["uses"].items())
    print(
        f"\nQuestions by type: {', '.join(f'{kind} {count}' for kind, count in kinds.items())}.\n"
        f"{found['audios']} audios, {found['hours']:.2f} h, of {found['clips']} clips.\n"
        f"Questions about an audio with two or more voices and a sound: {found['competing']:.0%}.\n"
        f"Audios with semantic and acoustic evidence at different places: {found['apart']:.0%}.\n"
        f"Clips by the audios in which they are evidence: {uses}."
    )
    if benchmark.left_out:
        count = sum(len(keys) for keys in benchmark.left_out.values())
        whys = ", ".join(f"{why} {len(keys)} (first {keys[0]})" for why, keys in benchmark.left_out.items())
        print(f"{count} recordings left out: {whys}.")
    print(f"Folder: {benchmark.folder}")


def _install(run: bool) -> None:
    import os
    import shlex
    import subprocess

    from headrouter_pl.data.pocket.library import install_command

    command = install_command()
    if os.geteuid():
        command = ["sudo", *command]
    print(shlex.join(command))
    if run:
        try:
            code = subprocess.run(command, check=False).returncode
        except FileNotFoundError as error:
            raise SystemExit(f"headrouter-pl data pocket: no {command[0]} here: {error}") from error
        if code:
            raise SystemExit(code)


data = {"_help": "Data sets made from what is installed.", "pocket": pocket}
