"""The board, which shows people how a stack starts and runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gateway.stack.board import Board, duration, provider_words
from gateway.stack.part import PartState, PartStatus


def shown(board: Board) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    with console.capture() as captured:
        console.print(board.render())
    return captured.get()


def test_durations_as_people_say_them() -> None:
    assert [duration(s) for s in (0, 59.9, 60, 3599, 3600, 90_000)] == [
        "0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 0 min",
    ]  # fmt: skip


def test_nobody_takes_a_simulated_provider_for_a_real_one() -> None:
    all_simulated = provider_words([], ["gpt-4o"], [])
    some = provider_words(["claude"], ["gpt-4o"], [])
    all_real = provider_words(["claude"], [], [])
    assert all_simulated is not None
    assert some is not None
    assert all_real is not None
    assert all_simulated[0].startswith("SIMULATED: no real provider is asked and no money is spent.")
    assert "REAL, costing real money: claude." in some[0]
    assert "SIMULATED, made up on this machine, free of charge: gpt-4o." in some[0]
    assert "real money is spent: claude" in all_real[0]
    assert provider_words([], [], []) is None


@pytest.mark.parametrize(
    ("real", "simulated", "lines"),
    [
        (["own"], [], ["YOUR OWN"]),
        (["own"], ["gpt-4o"], ["YOUR OWN", "SIMULATED"]),
        (["claude", "own"], ["gpt-4o"], ["REAL, costing real money: claude.", "YOUR OWN", "SIMULATED"]),
        (["claude", "own"], [], ["REAL, costing real money: claude.", "YOUR OWN"]),
    ],
)
def test_a_server_on_this_machine_is_not_called_a_provider_that_costs_money(
    real: list[str], simulated: list[str], lines: list[str]
) -> None:
    words = provider_words(real, simulated, ["own"])
    assert words is not None
    said = words[0].splitlines()
    assert len(said) == len(lines)
    assert all(sentence.startswith(begins) for sentence, begins in zip(said, lines, strict=True))
    assert next(sentence for sentence in said if "own." in sentence).startswith("YOUR OWN")


def test_a_change_is_one_line_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    board = Board(Console(file=out, width=40))
    with board:
        board.progress(PartStatus("redis", "127.0.0.1:1"))
        board.progress(PartStatus("redis", "127.0.0.1:1", PartState.READY, pid=7))
        board.progress("Port 4100 is taken")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2, "what only waits is not said"
    assert "redis" in lines[0]
    assert "ready" in lines[0]
    assert "(process 7)" in lines[0]
    assert lines[1].endswith("Port 4100 is taken")


def test_the_board_shows_each_part_and_what_went_wrong() -> None:
    board = Board(Console(file=io.StringIO(), width=160))
    board.progress(PartStatus("postgres", "127.0.0.1:1", PartState.READY, pid=7, since=0.0))
    detail = "killed by SIGKILL; starting again in 2 s"
    board.progress(PartStatus("redis", "127.0.0.1:2", PartState.DOWN, restarts=3, detail=detail))
    board.progress(PartStatus("litellm-proxy", "http://elsewhere", PartState.READY, external=True))
    text = shown(board)
    assert "killed by SIGKILL" in text
    assert "external, ready" in text
    assert "starting …" in text
