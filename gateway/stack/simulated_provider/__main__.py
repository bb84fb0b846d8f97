"""Command line of the simulated provider: `python -m gateway.stack.simulated_provider --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gateway.stack.simulated_provider.server import serve


def main() -> int:
    """Run the provider. Exit code 1 when it cannot start, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="simulated_provider", description="An LLM provider that bills exactly.")
    parser.add_argument("--port", type=int, required=True, help="0: any free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--own-prices", type=Path, help="JSON, by model: prices that replace those of the list")
    parser.add_argument("--meter", type=Path, help="keeps the invoice over a restart (JSON lines)")
    parser.add_argument("--desk", type=Path, help="keeps what was done at the desk over a restart (JSON lines)")
    parser.add_argument("--seed", type=int, default=0, help="other answers to the same requests")
    parser.add_argument("--model", action="append", default=[], help="a model that GET /openai/v1/models lists")
    given = parser.parse_args()
    try:
        serve(
            host=given.host,
            port=given.port,
            own_prices=given.own_prices,
            meter=given.meter,
            seed=given.seed,
            models=given.model,
            desk=given.desk,
        )
    except (OSError, ValueError) as error:
        print(f"the simulated provider cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
