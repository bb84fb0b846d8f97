"""JSON as it is recorded, and its digest.

What must hold:
  The same value has the same digest in every process and in every release, because digests are recorded and compared.
"""

from __future__ import annotations

import json
from hashlib import sha256


def to_json(value: object, *, sort: bool = False) -> str:
    """JSON in ASCII, so that no text that a model writes is refused. Raises ValueError, TypeError: it is not JSON."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=sort)


def digest_of(value: object) -> bytes:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return sha256(to_json(value, sort=True).encode()).digest()
