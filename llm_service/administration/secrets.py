"""Secrets of keys: how one is made, how one is recognised, and what is stored in its place.

What must hold:
  A secret is 256 random bits, so that there is nothing to guess; its hash therefore needs no salt.
  Only the hash of a secret is stored or looked up, never the secret itself.
"""

from __future__ import annotations

import hashlib
import re
import secrets

_FORM = re.compile(r"sk-tr-[A-Za-z0-9_-]{43}")


def new_secret() -> str:
    """A secret that nobody has had before."""
    return f"sk-tr-{secrets.token_urlsafe(32)}"


def looks_like_secret(text: str) -> bool:
    """Whether a text has the form of one of our secrets. Other texts need no look-up."""
    return _FORM.fullmatch(text) is not None


def hash_secret(secret: str) -> bytes:
    """The SHA-256 of a secret, which is stored in its place and by which it is found."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
