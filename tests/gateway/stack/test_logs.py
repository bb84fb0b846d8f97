"""Logs that do not grow forever, even while they are written to."""

from __future__ import annotations

from pathlib import Path

from gateway.stack.logs import bound, open_log, tail


def test_a_log_that_grew_too_large_is_moved_aside_under_its_writer(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "part.log"
    with open_log(file) as log:
        log.write(b"x" * 2000)
        log.flush()
        bound(file, 1000)
        log.write(b"after\n")
        log.flush()
    assert file.read_bytes() == b"after\n"
    assert file.with_name("part.log.1").stat().st_size == 2000
    bound(file, 1000)
    bound(tmp_path / "missing.log", 1000)
    assert file.read_bytes() == b"after\n"


def test_the_last_lines(tmp_path: Path) -> None:
    file = tmp_path / "part.log"
    assert tail(file) == ""
    file.write_bytes(b"".join(f"line {n}\n".encode() for n in range(5000)) + b"\xff broken\n")
    assert tail(file, 2) == "line 4999\n\N{REPLACEMENT CHARACTER} broken"
