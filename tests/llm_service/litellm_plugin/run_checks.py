"""Runs the checks of this folder in LiteLLM Proxy's own Python: the plugin against LiteLLM's real classes, without
pytest.

Prints one JSON object: for each file of checks the name of each check, and null or what went wrong.
"""
# ruff: noqa: E402 (the environment comes before LiteLLM)
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(prefix="treasurer-plugin-"))
os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    TREASURER_GRANT_SECRET="a-secret-of-the-tests-that-has-32-characters",
    TREASURER_GRANT_DIR=str(FOLDER / "grants"),
    TREASURER_SPOOL_DIR=str(FOLDER / "spool"),
)

from tests.llm_service.litellm_plugin import (
    auth_checks,
    chunk_folding_checks,
    cooldowns_checks,
    hooks_checks,
    price_book_checks,
    shortcuts_checks,
    whole_streams_checks,
    witness_logger_checks,
)


def main() -> None:
    results: dict[str, dict[str, str | None]] = {}
    for module in (
        auth_checks,
        chunk_folding_checks,
        cooldowns_checks,
        hooks_checks,
        price_book_checks,
        shortcuts_checks,
        whole_streams_checks,
        witness_logger_checks,
    ):
        found = results[module.__name__.rpartition(".")[2]] = {}
        for name, check in vars(module).items():
            if name.startswith("check_"):
                try:
                    asyncio.run(check())
                    found[name] = None
                except BaseException:  # noqa: BLE001  # each is reported
                    found[name] = traceback.format_exc()
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
