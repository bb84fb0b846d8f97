"""Outside the upstream folder, no code names a proxy, a provider or one of their headers. An answer carries facts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOM = Path(__file__).resolve().parents[3] / "llm_service"
FILES = [ROOM / "service.py", *sorted((ROOM / "call").glob("*.py"))]
NAMES = re.compile(r"litellm|llm_provider|anthropic|gemini|vertex|bedrock|azure|openai(?!'s wire)", re.IGNORECASE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_call_knows_no_provider(file: Path) -> None:
    named = [line.strip() for line in file.read_text("utf-8").splitlines() if NAMES.search(line)]
    assert named == []


def test_the_governed_call_is_read_in_one_go() -> None:
    assert len((ROOM / "service.py").read_text("utf-8").splitlines()) <= 260
    ground = {file.name for file in ROOM.glob("*.py")} - {"__init__.py", "proxy_plugin.py"}
    assert len(ground) <= 12, sorted(ground)
