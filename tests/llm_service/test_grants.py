"""A grant permits exactly one request. Any other is refused, with a reason that does not contain the token."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import jwt
import pytest

from llm_service.grants import (
    CLOCK_SKEW_S,
    Grant,
    GrantError,
    GrantTimeError,
    UsedGrants,
    digest_of,
    for_service,
    sign,
    verify,
)

SECRET = "a-secret-of-the-tests-that-has-32-characters"
PATH = "/v1/chat/completions"
BODY = b'{"model":"gpt-4o-mini","messages":[]}'


def grant(**changes: object) -> Grant:
    now = int(time.time())
    base = Grant(
        call_id=UUID(int=7),
        attempt=1,
        agent_id=42,
        agent="digest",
        team="research",
        organisation="default",
        key_id=3,
        model="gpt-4o-mini",
        path=PATH,
        digest=digest_of(BODY),
        issued_at=now,
        expires_at=now + 60,
        tags=("news", "日本"),
        run="run-1",
        user=None,
        session="s",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def check(token: str, *, path: str = PATH, model: str | None = "gpt-4o-mini", body: bytes = BODY) -> Grant:
    return verify(SECRET, token, path=path, model=model, body=body)


def claims(**changes: object) -> dict[str, object]:
    decoded: dict[str, object] = jwt.decode(sign(SECRET, grant()), options={"verify_signature": False})
    return {**decoded, **changes}


def test_i3_a_grant_is_read_back_whole() -> None:
    signed = grant()
    assert check(sign(SECRET, signed)) == signed
    assert signed.jti == "00000000-0000-0000-0000-000000000007.1"
    marked = replace(signed, drain_on_disconnect=True, once=True)
    assert check(sign(SECRET, marked)) == marked


def test_a_grant_of_the_version_before_is_read_though_it_carries_a_claim_that_is_not_used_any_more() -> None:
    older = claims(limits={"rpm": 10, "tpm": None, "parallel": 2})
    assert check(jwt.encode(older, SECRET, algorithm="HS256")) == check(sign(SECRET, grant()))


@pytest.mark.parametrize("missing", ["key_id", "run", "user", "session"])
def test_optional_claims_may_be_absent(missing: str) -> None:
    signed = grant(**{missing: None}, tags=())
    assert check(sign(SECRET, signed)) == signed


def test_a_read_of_the_service_needs_no_model_and_no_body() -> None:
    signed = for_service("/model/info")
    assert verify(SECRET, sign(SECRET, signed), path="/model/info", model=None, body=b"") == signed


def test_i3_a_forged_grant_is_refused() -> None:
    with pytest.raises(GrantError, match="signature"):
        check(sign("another-secret-that-also-has-32-characters!", grant()))


@pytest.mark.parametrize(
    "changes",
    [{"model": "gpt-4o"}, {"agent_id": 1}, {"agent": "other", "team": "other"}, {"key_id": 9}, {"expires_at": 2**33}],
)
def test_i3_a_tampered_grant_is_refused(changes: dict[str, object]) -> None:
    """A grant whose model, agent, team, key or time was changed is refused, because all of these are signed."""
    head, _, tail = sign(SECRET, grant()).split(".")
    _, payload, _ = sign("x" * 32, grant(**changes)).split(".")
    with pytest.raises(GrantError, match="signature"):
        check(f"{head}.{payload}.{tail}")


def test_i3_an_expired_grant_is_refused() -> None:
    now = int(time.time())
    with pytest.raises(GrantTimeError, match="expired"):
        check(sign(SECRET, grant(issued_at=now - 100, expires_at=now - CLOCK_SKEW_S - 1)))


def test_a_grant_from_the_future_says_that_the_clocks_differ() -> None:
    now = int(time.time())
    with pytest.raises(GrantTimeError, match="clocks"):
        check(sign(SECRET, grant(issued_at=now + 3600, expires_at=now + 7200)))


@pytest.mark.parametrize(
    ("request_changes", "reason"),
    [
        ({"path": "/v1/embeddings"}, "another path"),
        ({"model": "gpt-4o"}, "another model"),
        ({"model": None}, "another model"),
        ({"body": BODY + b" "}, "another body"),
        ({"body": b""}, "another body"),
    ],
)
def test_i3_a_grant_opens_no_other_request(request_changes: dict[str, object], reason: str) -> None:
    with pytest.raises(GrantError, match=reason):
        check(sign(SECRET, grant()), **request_changes)  # type: ignore[arg-type]


def test_i3_an_unsigned_grant_is_refused() -> None:
    unsigned = jwt.encode(claims(), "", algorithm="none")
    with pytest.raises(GrantError, match="not a grant"):
        check(unsigned)


def test_i3_another_algorithm_is_refused() -> None:
    with pytest.raises(GrantError, match="not a grant"):
        check(jwt.encode(claims(), SECRET + "x" * 64, algorithm="HS512"))


def test_i3_another_issuer_is_refused() -> None:
    with pytest.raises(GrantError, match="issued by"):
        check(jwt.encode(claims(iss="someone"), SECRET, algorithm="HS256"))


@pytest.mark.parametrize("token", ["", "sk-tr-stolen-agent-key", "a.b.c", "é.é.é", "." * 40])
def test_i3_what_is_no_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(GrantError) as refused:
        check(token)
    assert refused.value.reason == "the bearer token is not a grant"


@pytest.mark.parametrize("name", ["exp", "iat", "jti", "sub"])
def test_a_grant_that_lacks_a_claim_is_refused(name: str) -> None:
    incomplete = claims()
    del incomplete[name]
    with pytest.raises(GrantError, match=name):
        check(jwt.encode(incomplete, SECRET, algorithm="HS256"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jti", "../../etc.1"),
        ("jti", "00000000-0000-0000-0000-000000000007"),
        ("jti", "00000000-0000-0000-0000-000000000007.-1"),
        ("sub", "agent"),
        ("agent", 5),
        ("key", "three"),
        ("tags", "news"),
        ("tags", [1]),
        ("exp", True),
    ],
)
def test_a_malformed_claim_is_refused(name: str, value: object) -> None:
    with pytest.raises(GrantError):
        check(jwt.encode(claims(**{name: value}), SECRET, algorithm="HS256"))


def test_i3_a_grant_is_used_once(tmp_path: Path) -> None:
    used, first, second = UsedGrants(tmp_path / "grants"), grant(), grant(attempt=2)
    assert used.use(first)
    assert not used.use(first)
    assert used.use(second)


def test_i3_a_use_is_remembered_by_other_processes_and_after_a_restart(tmp_path: Path) -> None:
    here, there = UsedGrants(tmp_path), UsedGrants(tmp_path)
    assert here.use(grant())
    assert not there.use(grant())
    assert there.use(grant(attempt=2))
    assert not here.use(grant(attempt=2))
    assert not UsedGrants(tmp_path).use(grant())


def _use_all(directory: Path, call_ids: list[UUID], expires_at: int) -> int:
    used = UsedGrants(directory)
    return sum(used.use(grant(call_id=call_id, expires_at=expires_at)) for call_id in call_ids)


def test_i3_of_processes_at_the_same_time_one_uses_a_grant(tmp_path: Path) -> None:
    call_ids = [uuid4() for _ in range(500)]
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        expires_at = int(time.time()) + 60
        uses = [processes.submit(_use_all, tmp_path, call_ids, expires_at) for _ in range(4)]
        assert sum(use.result() for use in uses) == len(call_ids)


def test_what_another_process_is_still_writing_is_no_use(tmp_path: Path) -> None:
    signed = grant()
    (tmp_path / f"{signed.expires_at // 60}.used").write_text("half a li")
    assert not UsedGrants(tmp_path).use(signed), "the line is not to be told from the half of another: refused"
    assert UsedGrants(tmp_path).use(grant(attempt=2))


def test_the_files_of_expired_grants_are_removed(tmp_path: Path) -> None:
    used, signed = UsedGrants(tmp_path), grant()
    assert used.use(signed)
    used.forget(signed.expires_at + CLOCK_SKEW_S)
    assert len(list(tmp_path.iterdir())) == 1, "as long as it could still be verified"
    used.forget(signed.expires_at + CLOCK_SKEW_S + 60)
    assert not list(tmp_path.iterdir())


def test_a_use_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        UsedGrants(tmp_path / "file").use(grant())
