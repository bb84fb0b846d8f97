"""Run tokens: the signed right of a worker to call models for one run, through a gateway.

What must hold:
  A token is for one run of one agent: what its calls are attributed to, and the envelope that they draw on, is signed and
      cannot be changed by the holder.
  It is no grant and no key: it has its own issuer, so the proxy refuses it, and a gateway takes no grant for one.
  It lives for minutes, and each call gets a new one. An error names the reason and never the token.

Both ends have the secret of the stack's grants. That is what makes a worker part of the stack, and not a caller.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from uuid import UUID

import jwt

from llm_service.errors import NotAuthenticated
from llm_service.grants import CLOCK_SKEW_S
from llm_service.types import CallContext

_ISSUER = "treasurer-run"
_ALGORITHM = "HS256"
_REQUIRED = ("iss", "sub", "run", "exp", "iat")
#: Long enough for a request's body to be sent, and for a busy gateway; a call that is under way needs it no more.
LIFETIME_S = 120


@dataclass(frozen=True, slots=True)
class RunToken:
    """The agent that pays, and the context of its calls. The idempotency key comes with each call."""

    agent: str
    context: CallContext


def looks_like_token(text: str) -> bool:
    """Whether a bearer secret is a token, and not an agent's key."""
    return text.startswith("eyJ") and text.count(".") == 2


def sign_run_token(secret: str, token: RunToken, *, lifetime_s: int = LIFETIME_S) -> str:
    """The token as a compact JWT, for `Authorization: Bearer …`."""
    now, context = int(time.time()), token.context
    claims: dict[str, object] = {
        "iss": _ISSUER,
        "sub": token.agent,
        "run": context.run,
        "user": context.user,
        "session": context.session,
        "tags": list(context.tags),
        "envelope": None if context.envelope is None else str(context.envelope),
        "keep": context.keep_answer_s,
        "iat": now,
        "exp": now + lifetime_s,
    }
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)  # pyright: ignore[reportUnknownMemberType]  # PyJWT's key type


def read_run_token(secret: str, text: str) -> RunToken:
    """Read a token that we signed.

    Raises:
        NotAuthenticated: it is not ours, has expired, or is malformed.
    """
    try:
        claims: Mapping[str, object] = jwt.decode(  # pyright: ignore[reportUnknownMemberType]  # PyJWT's key type
            text, secret, algorithms=[_ALGORITHM], issuer=_ISSUER, leeway=CLOCK_SKEW_S,
            options={"require": list(_REQUIRED), "verify_aud": False},
        )  # fmt: skip
    except jwt.ExpiredSignatureError:
        raise NotAuthenticated("The run's token has expired. A worker signs a new one for each call.") from None
    except jwt.PyJWTError:
        raise NotAuthenticated("The bearer token is not a run's token of this stack.") from None
    tags, envelope, keep = claims.get("tags"), claims.get("envelope"), claims.get("keep")
    try:
        if not isinstance(tags, list) or not isinstance(keep, int | float | None) or isinstance(keep, bool):
            raise ValueError
        context = CallContext(
            run=_text(claims["run"]),
            user=None if claims.get("user") is None else _text(claims["user"]),
            session=None if claims.get("session") is None else _text(claims["session"]),
            tags=tuple(_text(tag) for tag in cast("list[object]", tags)),
            envelope=None if envelope is None else UUID(_text(envelope)),
            keep_answer_s=keep,
        )
        return RunToken(_text(claims["sub"]), context)
    except ValueError:
        raise NotAuthenticated("The run's token is malformed.") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value
