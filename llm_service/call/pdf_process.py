"""Reads one PDF from standard input, and writes its facts as JSON. Run as a process by documents.py.

What must hold: the process ends after some seconds, and uses a bounded amount of memory, whatever the file is.
"""

from __future__ import annotations

import resource
import sys
from typing import Final

import orjson

from llm_service.wire.pdf import read_pdf

_CPU_S: Final = 3
_MEMORY_BYTES: Final = 1 << 30


def main() -> None:
    """Limit this process, then read."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(orjson.dumps(read_pdf(sys.stdin.buffer.read())))


if __name__ == "__main__":
    main()
