"""``python -m headrouter_pl``: the command, with a traceback of every error."""

from headrouter_pl.cli import main

main()
