"""Lists the checks of a file. Test modules cannot import such files, because LiteLLM is absent from their
environment."""

from __future__ import annotations

import re
from pathlib import Path


def checks_of(name: str) -> list[str]:
    """The names of the checks in a file of this folder."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    names = re.findall(r"^async def (check_\w+)", text, re.MULTILINE)
    assert names, name
    return names
