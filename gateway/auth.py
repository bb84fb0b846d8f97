"""Who may use the admin API: `Authorization: Bearer <an administrator's key>`.

What must hold: who has no valid key learns nothing but that. As a dependency it runs after FastAPI has
parsed a body: routes that take one call it before they read (`gateway/routes/admin.py`).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from llm_service.administration.principals import Principals
from llm_service.administration.transaction import ACTOR
from llm_service.errors import NotAuthenticated

#: Alone, this only documents the key in the API's description.
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
    """The secret that a request carries.

    Raises:
        NotAuthenticated: none, or several: which of them counts would be a matter of who reads.
    """
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise NotAuthenticated(SEVERAL)
    return bearer_secret(given[0] if given else None)


async def administrator(
    request: Request, _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)] = None
) -> None:
    """FastAPI dependency: let administrators through; what they change is logged under their key's name.

    Raises:
        NotAuthenticated: no key, or an unknown, expired or revoked one. NotPermitted: an agent's key.
    """
    principals: Principals = request.app.state.runtime.principals
    ACTOR.set(await principals.administrator(secret_of(request)))
