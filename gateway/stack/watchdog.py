"""The process that outlives a killed supervisor, and stops the processes that the supervisor left behind.

What must hold:
When the supervisor ends, even by kill -9, this process's standard input ends too. Then every process group that is still
on the list is stopped: first by the group's stop signal, and after `GRACE_S` by SIGKILL.
It uses only the standard library and runs as a plain script, so that it starts in milliseconds.
It works wherever there are pipes and process groups.

Lines it reads: `+ <group> <signal>` a group to stop, `- <group>` one that has ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE_S = 5.0


def groups_left(lines: Iterable[str]) -> dict[int, int]:
    """The groups that are on the list at the end of the lines, each with its stop signal."""
    groups: dict[int, int] = {}
    for line in lines:
        match line.split():
            case ["+", group, stop_signal]:
                groups[int(group)] = int(stop_signal)
            case ["-", group]:
                groups.pop(int(group), None)
            case _:
                pass  # a line cut short by the supervisor's death
    return groups


def stop_groups(groups: dict[int, int], grace_s: float = GRACE_S) -> None:
    """Signal each group, wait until all are gone or `grace_s` seconds have passed, then kill the rest."""
    for group, stop_signal in groups.items():
        _signal(group, stop_signal)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(_signal(group, 0) for group in groups):
        time.sleep(0.05)
    for group in groups:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Signal a group. Returns whether it exists and may be signalled."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


def main() -> None:
    """Read the input to its end, then stop the groups that are left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    stop_groups(groups_left(sys.stdin))


if __name__ == "__main__":
    main()
