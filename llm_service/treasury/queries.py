"""SQL in files: each statement of more than a few lines is a file under `sql/`, which psql can run and a person can read.

What must hold:
  A file is read when the module that uses it is imported, so that one that is missing stops the start, not a call.
  What a person typed reaches Postgres as a parameter (`$1`) only. `{{name}}` in a file stands for text of this code: an
      alias, a number, another file; the module that loads the file gives each of them.

Whole lines of comment stay in the file. A statement whose parts depend on a request is composed where it is used:
`reports/reports.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = Path(__file__).parent / "sql"
_PART = re.compile(r"\{\{(\w+)\}\}")


def load_query(name: str, **parts: str) -> str:
    """The statement in `sql/{name}.sql`, with each `{{part}}` replaced.

    Raises:
        FileNotFoundError: there is no such file. ValueError: a part is missing, or is not in the file.
    """
    lines = (_FOLDER / f"{name}.sql").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("--"))
    if set(_PART.findall(text)) != set(parts):
        raise ValueError(f"sql/{name}.sql has the parts {sorted(set(_PART.findall(text)))}, not {sorted(parts)}")
    return _PART.sub(lambda part: parts[part[1]], text)
