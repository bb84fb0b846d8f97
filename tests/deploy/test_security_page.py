"""docs/security.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_test_that_the_security_page_names_exists() -> None:
    named = set(re.findall(r"`((?:test|check)_[a-z0-9_]+)`", (ROOT / "docs" / "security.md").read_text("utf-8")))
    sources = "\n".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"def ((?:test|check)_[a-z0-9_]+)\(", sources))
    assert len(named) >= 25
    assert named - defined == set()
