"""The functions with which all commands print."""

from __future__ import annotations

import pytest

from gateway.cli.common import emit


def test_into_a_pipe_a_row_is_one_line_however_long_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    long = "why it is so " * 40
    emit([{"model": "claude-sonnet-5-5", "why": long.strip()}, {"model": "b", "why": "short"}])
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if line.strip().startswith("claude")] == [
        f"claude-sonnet-5-5   {long.strip()}"
    ]
