"""Lets only administrators use the admin API: `Authorization: Bearer <an administrator's key>`.

What must hold:
A caller without a valid key learns only that its key is not valid.
FastAPI runs a dependency only after it has parsed the body. So routes that take a body check the key themselves,
before they read it (`gateway/routes/admin/common.py`).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from llm_service.administration.principals import Principals
from llm_service.administration.transaction import ACTOR
from llm_service.errors import NotAuthenticated

#: This only documents the key in the API's description; `administrator` checks it.
scheme = HTTPBearer(auto_error=False, description="An administrator's key (treasurer key create --admin)")

SEVERAL = "Send one Authorization header, not several."


def bearer_secret(authorization: str | None) -> str:
    """The secret in an Authorization header.

    Raises:
        NotAuthenticated: there is no header, or it is not `Bearer <key>`.
    """
    kind, _, secret = (authorization or "").strip().partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise NotAuthenticated("No key was given. Send the header Authorization: Bearer sk-tr-….")
    return secret.strip()


def secret_of(request: Request) -> str:
    """The secret in a request's Authorization header.

    Raises:
        NotAuthenticated: there is no such header, or there are several: different readers might choose different ones.
    """
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise NotAuthenticated(SEVERAL)
    return bearer_secret(given[0] if given else None)


async def administrator(
    request: Request, _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)] = None
) -> None:
    """FastAPI dependency: let administrators pass, and log their changes under their key's name.

    Raises:
        NotAuthenticated: there is no key, or it is unknown, expired or revoked.
        NotPermitted: it is an agent's key.
    """
    principals: Principals = request.app.state.runtime.principals
    ACTOR.set(await principals.administrator(secret_of(request)))
