"""Settlements on disk: written at once, read by whoever comes after a crash, and by nobody while their owner lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.treasury.spool import SettlementSpool, read_lines
from llm_service.types import LedgerState, Settlement, Usage, UsageSource

settlements = st.builds(
    Settlement,
    call_id=st.uuids(),
    attempt=st.integers(0, 9),
    state=st.sampled_from(LedgerState),
    cost_nano=st.integers(0, 2**60),
    usage=st.builds(Usage, *(st.integers(0, 2**31 - 1) for _ in range(6))),
    usage_source=st.sampled_from(UsageSource),
    proxy_cost_nano=st.none() | st.integers(0, 2**60),
    provider=st.none() | st.text(max_size=5),
    error_code=st.none() | st.text(max_size=5),
)


def one(cost_nano: int = 7) -> Settlement:
    return Settlement(uuid4(), 0, LedgerState.POSTED, cost_nano)


@given(st.lists(settlements, max_size=5))
def test_what_is_written_is_read(items: list[Settlement]) -> None:
    assert read_lines(b"".join(orjson.dumps(item) + b"\n" for item in items)) == items


def test_a_torn_line_and_other_versions_fields(caplog: pytest.LogCaptureFixture) -> None:
    whole = orjson.dumps(one())
    newer = orjson.dumps({**orjson.loads(whole), "mood": "good"})
    older = orjson.dumps({"call_id": str(uuid4()), "attempt": 1, "state": "voided", "cost_nano": 0})
    found = read_lines(b"\n".join([whole, newer, older, b'{"call_id": 7}', whole[:40]]))
    assert [item.cost_nano for item in found] == [7, 7, 0]
    assert isinstance(found[2].call_id, UUID)
    assert len(caplog.records) == 2


def test_a_journal_is_its_owners_while_it_lives(tmp_path: Path) -> None:
    owner, other = SettlementSpool(tmp_path), SettlementSpool(tmp_path)
    kept = one()
    assert owner.add([kept])
    (path,) = other.orphans()
    assert path.stat().st_mode & 0o777 == 0o600
    assert owner.orphans() == []
    with other.orphan(path) as left:
        assert left is None
    owner.close()  # as its end would
    with other.orphan(path) as left:
        assert left == [kept]
        with SettlementSpool(tmp_path).orphan(path) as again:
            assert again is None  # one at a time


def test_what_postgres_has_is_not_kept(tmp_path: Path) -> None:
    spool = SettlementSpool(tmp_path)
    spool.add([one(), one()])
    assert len(spool) == 2
    spool.clear()
    assert (len(spool), list(tmp_path.iterdir())) == (0, [])
    spool.add([one()])
    assert len(list(tmp_path.iterdir())) == 1
    spool.close()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert not SettlementSpool(tmp_path / "file" / "x").add([one()])
    assert "not on disk" in caplog.text


def test_a_process_that_is_killed_leaves_its_journal_to_others(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from uuid import uuid4;"
        "from llm_service.treasury.spool import SettlementSpool; from llm_service.types import LedgerState, Settlement;"
        "s = SettlementSpool(Path(sys.argv[1])); s.add([Settlement(uuid4(), 0, LedgerState.POSTED, 11)]);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, cwd=Path.cwd())
    assert result.returncode == -9
    spool = SettlementSpool(tmp_path)
    (path,) = spool.orphans()
    with spool.orphan(path) as left:
        assert left is not None
        assert [item.cost_nano for item in left] == [11]
