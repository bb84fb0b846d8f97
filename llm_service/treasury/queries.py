"""SQL in files: each statement of more than a few lines is a file under `sql/`, which psql can run and a person can read.

What must hold:
  A file is read when the module that uses it is imported, so that a missing file stops the start, not a call.
  Text that a person typed reaches Postgres only as a parameter (`$1`). `{{name}}` in a file is replaced by text from
      the module that loads the file: an alias, a number, another file.

Lines that are only a comment are not sent to Postgres. A statement whose parts depend on a request is composed in
Python: `reports/reports.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = Path(__file__).parent / "sql"
_PART = re.compile(r"\{\{(\w+)\}\}")


def load_query(name: str, **parts: str) -> str:
    """The statement in `sql/{name}.sql`, with each `{{part}}` replaced.

    Raises:
        FileNotFoundError: the file does not exist. ValueError: a part is missing, or the file has no such part.
    """
    lines = (_FOLDER / f"{name}.sql").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("--"))
    if set(_PART.findall(text)) != set(parts):
        raise ValueError(f"sql/{name}.sql has the parts {sorted(set(_PART.findall(text)))}, not {sorted(parts)}")
    return _PART.sub(lambda part: parts[part[1]], text)
