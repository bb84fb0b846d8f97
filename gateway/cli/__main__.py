"""`python -m gateway.cli` is `treasurer`."""

from gateway.cli import main

main()
