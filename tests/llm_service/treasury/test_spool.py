"""Settlements on disk: written at once, and read by another process only after their owner has ended."""

from __future__ import annotations

import fcntl
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    assert [record.getMessage()[:7] for record in caplog.records] == ["2 lines"]


def test_a_journal_is_its_owners_while_it_lives(tmp_path: Path) -> None:
    owner, other = SettlementSpool(tmp_path), SettlementSpool(tmp_path)
    kept = one()
    assert owner.add([kept])
    (path,) = other.orphans()
    assert path.stat().st_mode & 0o777 == 0o600
    assert owner.orphans() == []
    with other.orphan(path) as left:
        assert left is None
    owner.close()  # has the same effect as the end of the owner's process
    with other.orphan(path) as left:
        assert left == [kept]
        with SettlementSpool(tmp_path).orphan(path) as again:
            assert again is None  # only one process at a time may read it


def test_what_postgres_has_is_not_kept(tmp_path: Path) -> None:
    spool = SettlementSpool(tmp_path)
    spool.add([one(), one()])
    assert len(spool) == 2
    spool.clear()
    assert (len(spool), list(tmp_path.iterdir())) == (0, [])
    spool.add([one()])
    assert len(list(tmp_path.iterdir())) == 1
    spool.close()


def test_a_folder_that_cannot_be_written_is_said_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    spool, kept = SettlementSpool(tmp_path / "file" / "x"), [one(1), one(2)]
    assert not spool.add(kept[:1])
    assert not spool.add([])
    assert caplog.text.count("not on disk") == 1
    (tmp_path / "file").unlink()
    assert spool.add(kept[1:])
    assert journal(tmp_path / "file" / "x") == kept
    spool.close()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Limit the size of files, so that a write stops in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def journal(folder: Path) -> list[Settlement]:
    (path,) = folder.iterdir()
    return read_lines(path.read_bytes())


def test_a_disk_that_fills_up_tears_no_line_and_what_it_did_not_take_follows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool, kept = SettlementSpool(tmp_path), [one(1), one(2), one(3)]
    assert spool.add(kept[:1])
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    with room_for(len(whole) + 40):
        assert not spool.add(kept[1:2])
    assert "not on disk" in caplog.text
    assert (len(spool), path.read_bytes()) == (1, whole)
    assert spool.add(kept[2:])
    assert (len(spool), journal(tmp_path)) == (3, kept)
    spool.close()


def test_a_journal_that_was_taken_away_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool, kept = SettlementSpool(folder), [one(1), one(2)]
    assert spool.add(kept[:1])
    shutil.rmtree(folder)
    assert spool.add([])
    assert journal(folder) == kept[:1]
    shutil.rmtree(folder)
    assert spool.add(kept[1:])
    assert journal(folder) == kept
    spool.close()


def test_a_journal_that_a_neighbour_takes_before_it_is_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = SettlementSpool(tmp_path)
    real, taken = fcntl.flock, list[Path]()

    def flock(file: int, how: int) -> None:
        if not taken:  # the neighbour acts after we have opened the file and before we lock it
            taken.extend(neighbour.orphans())
            with neighbour.orphan(taken[0]) as left:
                assert left == []
                taken[0].unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    spool, kept = SettlementSpool(tmp_path), one()
    assert spool.add([kept])
    assert journal(tmp_path) == [kept]
    spool.close()


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
