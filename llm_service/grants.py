"""Grants: the signed permission for one request to LiteLLM Proxy. Standard library and PyJWT only.

What must hold (invariant I3): the proxy serves nothing without a grant that our service signed, that has not expired,
and that names exactly this path, this model and these bytes. The service signs and the plugin inside LiteLLM Proxy
verifies, both with this module, so that they cannot drift apart. An error names the reason and never the token.

A grant is valid for one request: `UsedGrants` remembers used grants by their `jti` until they expire.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from errno import ENOSPC
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import cast
from uuid import UUID, uuid4

import jwt

ISSUER = "treasurer"
_ALGORITHM = "HS256"
#: How far the clocks of the service and the proxy may be apart, in seconds.
CLOCK_SKEW_S = 5
_REQUIRED = ("iss", "jti", "sub", "exp", "iat")

#: Requests that spend money. Each grant for them may be used once.
CALL_PATHS = frozenset({"/v1/chat/completions", "/v1/embeddings"})
#: Requests of the service itself that cost nothing; their grants may be used until they expire.
READ_PATHS = frozenset({"/model/info", "/utils/token_counter"})

#: The only fields that a body may have in `extra_body`, because LiteLLM passes these on to a provider unchecked.
EXTRA_BODY_FIELDS = frozenset({"metadata", "prompt_cache_retention", "prompt_cache_options", "tool_choice"})

#: Fields that the plugin adds to the `model_info` of a model's entry in `/model/info`. The version of the model's
#: prices.
PRICES_STAMP = "treasurer_prices"
#: True if the proxy writes each use of a grant to the database before it asks a provider.
USES_STAMP = "treasurer_uses_shared"
#: The statuses after which the proxy's router tries another deployment automatically.
RETRIES_STAMP = "treasurer_retries"
#: The prices of the model's entry in LiteLLM's price map, including those that `/model/info` leaves out.
ENTRY_STAMP = "treasurer_price_entry"
#: The pattern (`openai/*`) that the model comes from. `/model/info` shows a pattern as all models that fit it, each
#: with the prices that an operator set for the pattern.
PATTERN_STAMP = "treasurer_pattern"
#: The names of settings that `/model/info` shows for a deployment, although they belong to another one of the same
#: model.
SHARED_STAMP = "treasurer_shared_prices"
#: The address that LiteLLM uses for OpenAI's models if a deployment names none. If the field is missing, OpenAI's usual
#: one.
BASE_STAMP = "treasurer_price_base"
#: Whether the proxy is configured to ask for caches that its callers did not ask for.
CACHES_STAMP = "treasurer_adds_caches"
#: The plugin's reasons for a refusal, in `x-treasurer-refused`. The grant names other prices than the proxy has.
PRICES_CHANGED = "prices_changed"
#: The grant was used before: an earlier request with it got no answer, and may be billed.
GRANT_USED = "grant_used"
#: The plugin cannot make sure that the grant is used only once.
GRANTS_UNAVAILABLE = "grants_unavailable"


class GrantError(Exception):
    """A token is not a grant for this request. `reason` is one clause, without any of the token's text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: str = reason


class GrantTimeError(GrantError):
    """A correctly signed grant that is not valid at this time: the clocks differ, or the request waited for too long."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The permission to send these bytes to this model until `expires_at`. Times are Unix seconds."""

    call_id: UUID
    attempt: int
    agent_id: int
    agent: str
    team: str
    organisation: str
    key_id: int | None
    model: str | None  # None: the request names no model (GET /model/info)
    path: str
    digest: str  # the digest of the exact body; "" if there is none
    issued_at: int
    expires_at: int
    tags: tuple[str, ...] = ()
    run: str | None = None
    user: str | None = None
    session: str | None = None
    #: Whether the proxy reads a stream to its end after the service has left it, because nothing else shows its cost.
    drain_on_disconnect: bool = False
    #: Whether the proxy asks one deployment only, because errors are billed and the hold does not cover a second one.
    once: bool = False
    #: The version of the model's prices that the hold was made with. None: the proxy had not reported one.
    prices: str | None = None

    @property
    def jti(self) -> str:
        """The name of this grant. Each attempt of a call has another one."""
        return f"{self.call_id}.{self.attempt}"


def digest_of(body: bytes) -> str:
    """A body's digest, as a grant names it: sha256 in hexadecimal, or `""` for an empty one."""
    return sha256(body).hexdigest() if body else ""


def for_service(path: str, *, model: str | None = None, body: bytes = b"", lifetime_s: int = 60) -> Grant:
    """A grant for one of the service's own reads (`READ_PATHS`), which no agent pays for."""
    now = int(time.time())
    return Grant(
        call_id=uuid4(), attempt=0, agent_id=0, agent="treasurer", team="treasurer", organisation="treasurer",
        key_id=None, model=model, path=path, digest=digest_of(body), issued_at=now, expires_at=now + lifetime_s,
    )  # fmt: skip


def sign(secret: str, grant: Grant) -> str:
    """The grant as a compact JWT, for `Authorization: Bearer …`. The secret has 32 characters or more."""
    claims: dict[str, object] = {
        "iss": ISSUER,
        "jti": grant.jti,
        "sub": str(grant.agent_id),
        "agent": grant.agent,
        "team": grant.team,
        "organisation": grant.organisation,
        "key": grant.key_id,
        "model": grant.model,
        "path": grant.path,
        "digest": grant.digest,
        "tags": list(grant.tags),
        "run": grant.run,
        "user": grant.user,
        "session": grant.session,
        "iat": grant.issued_at,
        "exp": grant.expires_at,
    }
    if grant.drain_on_disconnect:
        claims["finishes"] = (
            True  # not renamed, because gateways and proxies of other versions know the claim by this name
        )
    if grant.once:
        claims["once"] = True
    if grant.prices is not None:
        claims["prices"] = grant.prices
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)  # pyright: ignore[reportUnknownMemberType]  # PyJWT's key type


def verify(secret: str, token: str, *, path: str, model: str | None, body: bytes) -> Grant:
    """Read a token as the grant for this very request.

    Raises:
        GrantTimeError: signed by us, and expired or not yet valid.
        GrantError: not signed by us, malformed, or for another path, model or body.
    """
    try:
        claims: Mapping[str, object] = jwt.decode(  # pyright: ignore[reportUnknownMemberType]  # PyJWT's key type
            token,
            secret,
            algorithms=[_ALGORITHM],
            issuer=ISSUER,
            leeway=CLOCK_SKEW_S,
            options={"require": list(_REQUIRED), "verify_aud": False},
        )
    except jwt.ExpiredSignatureError:
        raise GrantTimeError("the grant has expired") from None
    except jwt.ImmatureSignatureError:
        raise GrantTimeError("the grant is not valid yet: the clocks of service and proxy differ") from None
    except jwt.InvalidSignatureError:
        raise GrantError("the grant's signature is not ours") from None
    except jwt.InvalidIssuerError:
        raise GrantError("the grant was not issued by Treasurer") from None
    except jwt.MissingRequiredClaimError as error:
        raise GrantError(f"the grant lacks the claim {error.claim}") from None
    except jwt.PyJWTError:
        # This covers `alg: none`, other algorithms, and anything that is not a JWT, such as an agent's key.
        raise GrantError("the bearer token is not a grant") from None
    grant = _parse(claims)
    if grant.path != path:
        raise GrantError("the grant is for another path")
    if grant.model != model:
        raise GrantError("the grant is for another model")
    if grant.digest != digest_of(body):
        raise GrantError("the grant is for another body")
    return grant


class UsedGrants:
    """Grants that were used, in files that all of the proxy's workers share and that outlive them.

    There is one file for each minute of expiry, `<directory>/<minute>.used`, that is only appended to. If several
    processes append a line for the same grant, the first line wins. This needs neither locks nor a server (an append is
    atomic on a local file, but not on a network file system).
    A separate file for each grant, created exclusively, would do the same but take a hundred times as long.
    A minute's file is removed when its grants have expired.
    """

    def __init__(self, directory: Path) -> None:
        self._directory: Path = directory
        self._minutes: dict[int, _Minute] = {}

    def use(self, grant: Grant) -> bool:
        """Whether this is the grant's first use. Raises OSError when the use cannot be recorded."""
        number = grant.expires_at // 60
        minute = self._minutes.get(number)
        if minute is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            minute = self._minutes[number] = _Minute(self._directory / f"{number}.used")
            self.forget(time.time())
        return minute.enter(grant.jti)

    def forget(self, now: float) -> None:
        """Remove the files of minutes whose grants have all expired. `now` in Unix seconds."""
        oldest = int(now - CLOCK_SKEW_S) // 60
        for number in [number for number in self._minutes if number < oldest]:
            self._minutes.pop(number).close()
        for file in self._directory.glob("*.used"):
            if file.stem.isdigit() and int(file.stem) < oldest:
                file.unlink(missing_ok=True)  # another worker may be removing it as well


class _Minute:
    """The file of one minute, as far as this process has read it."""

    def __init__(self, path: Path) -> None:
        self._file: int = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._read_to: int = 0
        self._names: set[str] = set()
        self._us: str = f"{os.getpid()}-{token_hex(4)}"

    def enter(self, name: str) -> bool:
        """Append a line for the grant, read the new part of the file, and return whether our line is the grant's first."""
        if name in self._names:
            return False
        line = f"{name} {self._us}\n".encode()
        if os.write(self._file, line) != len(line):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        first: str | None = None
        while block := os.pread(self._file, 1 << 16, self._read_to):
            whole = block[: block.rfind(b"\n") + 1]  # the rest is a line that another process is still writing
            if not whole:
                break
            self._read_to += len(whole)
            for entry in whole.decode().splitlines():
                used, _, by = entry.partition(" ")
                if used == name and first is None:
                    first = by
                self._names.add(used)
        return first == self._us

    def close(self) -> None:
        os.close(self._file)


def _parse(claims: Mapping[str, object]) -> Grant:
    """Claims as a grant. Each type is checked, because a file name and database rows are made from them."""
    call_id, _, attempt = _text(claims, "jti").rpartition(".")
    tags = claims.get("tags")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in cast("list[object]", tags)):
        raise _malformed("tags")
    try:
        return Grant(
            call_id=UUID(call_id),
            attempt=_number("jti", attempt),
            agent_id=_number("sub", _text(claims, "sub")),
            agent=_text(claims, "agent"),
            team=_text(claims, "team"),
            organisation=_text(claims, "organisation"),
            key_id=_optional_number(claims, "key"),
            model=_optional_text(claims, "model"),
            path=_text(claims, "path"),
            digest=_text(claims, "digest"),
            issued_at=_number("iat", claims.get("iat")),
            expires_at=_number("exp", claims.get("exp")),
            tags=tuple(cast("list[str]", tags)),
            run=_optional_text(claims, "run"),
            user=_optional_text(claims, "user"),
            session=_optional_text(claims, "session"),
            drain_on_disconnect=claims.get("finishes") is True,
            once=claims.get("once") is True,
            prices=_optional_text(claims, "prices"),
        )
    except ValueError:
        raise _malformed("jti") from None


def _text(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str):
        raise _malformed(name)
    return value


def _optional_text(claims: Mapping[str, object], name: str) -> str | None:
    return None if claims.get(name) is None else _text(claims, name)


def _number(name: str, value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise _malformed(name)


def _optional_number(claims: Mapping[str, object], name: str) -> int | None:
    return None if claims.get(name) is None else _number(name, claims.get(name))


def _malformed(name: str) -> GrantError:
    return GrantError(f"the grant's claim {name} is malformed")
