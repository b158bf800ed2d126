"""Runs a script as two processes of a Trainer, and reads what each wrote."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_two(script: str, caller: str, folder: Path) -> list[Any]:
    """What both ranks leave in ``RANK.json`` of the folder.

    Args:
        script: Source; the word ``PATH`` in it becomes the folders to import the tests and their support from.
        caller: ``__file__`` of the test.
        folder: Empty.
    """
    support = Path(__file__).parent
    path = folder / "ddp.py"
    folders = [str(Path(caller).parent), str(support), str(support.parents[1])]
    path.write_text(script.replace("PATH", repr(folders)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gone = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK")
    env = {name: value for name, value in os.environ.items() if name not in gone and not name.startswith("PYTEST")}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = folder / "log.txt"
    with log.open("w") as out:
        started = subprocess.Popen(
            [sys.executable, str(path)], env=env, cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    try:
        assert started.wait(timeout=120) == 0, log.read_text()[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # the second process too, should it be there still
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
