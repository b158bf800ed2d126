"""What ``import headrouter_pl`` does and does not do."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import headrouter_pl

ROOT = Path(headrouter_pl.__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(headrouter_pl.__path__, "headrouter_pl.")
    if not module.name.split(".")[-1].startswith("_")  # __main__ runs the command line
)

FRESH = """
import json, sys

def no_network(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise AssertionError(f"{event} {args}")

sys.addaudithook(no_network)
import headrouter_pl
print(json.dumps(sorted(sys.modules)))
"""


def test_import_is_cheap_and_takes_no_network(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FRESH], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    at_import = json.loads(done.stdout)
    heavy = {"torch", "transformers", "lightning", "sklearn", "numpy", "scipy", "peft", "torchmetrics", "safetensors"}
    assert not heavy & set(at_import)
    ours = [name for name in at_import if name.startswith("headrouter_pl")]
    assert ours == ["headrouter_pl", "headrouter_pl._version"]


def test_public_names() -> None:
    for name in headrouter_pl.__all__:
        value = getattr(headrouter_pl, name)
        assert name == "__version__" or (value.__name__ == name and value.__module__.startswith("headrouter_pl."))
        assert name in dir(headrouter_pl)
    assert issubclass(headrouter_pl.HeadRouterError, Exception)
    with pytest.raises(AttributeError, match="no attribute 'HeadRooter'"):
        _ = headrouter_pl.HeadRooter


def test_version_and_typing_marker() -> None:
    from packaging.version import Version

    assert str(Version(headrouter_pl.__version__)) == headrouter_pl.__version__
    assert (Path(headrouter_pl.__file__).parent / "py.typed").is_file()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
@pytest.mark.parametrize("room", ["routers", "callbacks"])
def test_front_door(room: str) -> None:
    assert os.readlink(ROOT / room) == f"headrouter_pl/{room}"
    assert (ROOT / room / "__init__.py").is_file()


def listed(module: ModuleType) -> list[str]:
    return list(getattr(module, "__all__", []))


@pytest.mark.parametrize("name", ["headrouter_pl", *MODULES])
def test_public_names_resolve_and_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert len(set(listed(module))) == len(listed(module))
    for public in listed(module):
        value = getattr(module, public)
        if not (inspect.isclass(value) or inspect.isfunction(value)) or not value.__module__.startswith(
            "headrouter_pl"
        ):
            continue
        assert value.__doc__, f"{name}.{public}"
        if not inspect.isclass(value):
            continue
        for method, member in vars(value).items():
            if not method.startswith("_") and inspect.isfunction(member) and not overrides(value, method):
                assert member.__doc__, f"{name}.{public}.{method}"


def overrides(cls: type, method: str) -> bool:
    """Whether a base class documents the method already."""
    return any(getattr(vars(base).get(method), "__doc__", None) for base in cls.__mro__[1:])
