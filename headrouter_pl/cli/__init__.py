"""The ``headrouter-pl`` command.

To add a command: a file with a function of its name, and a line in :data:`COMMANDS`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from importlib import import_module

from headrouter_pl.errors import HeadRouterError

COMMANDS = ("benchmark", "calibrate", "compare", "data", "demo", "evaluate", "gallery", "profile", "router")
"""Functions ``headrouter_pl.cli.NAME.NAME``, or dictionaries of them; their arguments and docstrings are the command
line."""

COMMAND_LINE: ContextVar[str | None] = ContextVar("headrouter_command_line", default=None)
"""The command that runs, as a shell takes it; None where a command's function is called from Python."""

SWITCHES = ("--install", "--run")
"""Options that mean true where no value follows."""

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
"""Subcommands of LightningCLI."""


def console() -> None:
    """The command as a shell runs it: of an error that is ours, what it says and no traceback."""
    try:
        main()
    except HeadRouterError as error:
        sys.exit(f"headrouter-pl: {error}")


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: Without the program's name; ``sys.argv[1:]`` if None.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args[:1] == ["--version"]:
        from headrouter_pl import __version__

        print(__version__)
    elif args and args[0] in TRAINER_COMMANDS:
        _trainer(args)
    else:
        from jsonargparse import auto_cli

        commands = {name: getattr(import_module(f"headrouter_pl.cli.{name}"), name) for name in COMMANDS}
        also = f"Also: {', '.join(TRAINER_COMMANDS)}, the subcommands of LightningCLI."
        given = COMMAND_LINE.set(shlex.join(["headrouter-pl", *args]))
        followed = zip(args, [*args[1:], ""], strict=False)
        args = [f"{arg}=true" if arg in SWITCHES and after not in ("true", "false") else arg for arg, after in followed]
        try:
            auto_cli(commands, args=args, prog="headrouter-pl", description=f"Head-routed audio token pruning. {also}")
        finally:
            COMMAND_LINE.reset(given)


def _trainer(args: list[str]) -> None:
    import lightning as L
    from lightning.pytorch.cli import LightningCLI

    # Imported, a data module can be named in a configuration without its package.
    from headrouter_pl.data import AudioPromptDataModule  # noqa: F401
    from headrouter_pl.lalm_module import LALMModule

    try:
        LightningCLI(
            LALMModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            args=None if args == sys.argv[1:] else args,  # LightningCLI warns of arguments that are given twice
            trainer_class=L.Trainer,
        )
    except ValueError as error:
        # jsonargparse wraps what a constructor raises, once for each type that the argument might be of.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HeadRouterError):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from None
