"""Call ids: UUIDs of version 7 (RFC 9562 §5.7), so that calls of about the same time are close together in an index."""

from __future__ import annotations

import os
import time
from uuid import UUID


def new_call_id() -> UUID:
    """A new id: 48 bits of Unix milliseconds, 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0x2 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF
    return UUID(int=value)
