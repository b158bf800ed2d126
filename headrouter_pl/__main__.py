"""``python -m headrouter_pl``."""

from headrouter_pl.cli import main

main()
