"""Starts the simulated provider in a container, with the price map that is part of LiteLLM."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Never returns: the simulated provider replaces this process."""
    litellm = find_spec("litellm")  # found, not imported
    if litellm is None or litellm.origin is None:
        sys.exit("LiteLLM is not installed here, so there is no price map.")
    prices = Path(litellm.origin).parent / "model_prices_and_context_window_backup.json"
    program = [sys.executable, "-m", "gateway.stack.simulated_provider"]
    arguments = ["--host", "0.0.0.0", "--port", "4001", "--prices", str(prices)]  # noqa: S104 (compose's network)
    os.execv(sys.executable, program + arguments)


if __name__ == "__main__":
    main()
