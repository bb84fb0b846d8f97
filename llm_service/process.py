"""What each process of ours sets for itself. Standard library only: LiteLLM Proxy loads it too.

What must hold:
- A process that crashes, and whatever it has started, leaves no copy of its memory behind: it holds secrets.
- Python's collector of cycles does not crash the process. Before Python 3.12 it may run in the middle of
  `ContextVar.set`; if what it collects sets a variable too (a generator left behind does, in its `finally`), memory that
  was freed is read: a segmentation fault (https://github.com/python/cpython/issues/148891, seen in LiteLLM Proxy).
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys

#: Bytes of a core dump. Not 0: at 0 Linux still hands a dump to a program that `core_pattern` names, at 1 to nobody;
#: and no file is as small as that.
_MOST = 1
#: Seconds between two moments in which the collector may run.
_COLLECT_EVERY_S = 0.05


def forbid_core_dumps() -> None:
    """For this process and those that it starts from now on; for good."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    if most == resource.RLIM_INFINITY or most > _MOST:
        most = _MOST
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


def collect_between_callbacks() -> None:
    """From now on the collector runs between two callbacks of the running event loop only, by its usual thresholds.

    Where Python does so by itself (3.12 and later), nothing changes.

    Raises:
        RuntimeError: no event loop runs.
    """
    loop = asyncio.get_running_loop()
    if sys.version_info < (3, 12):
        _collect_if_due(loop)


def _collect_if_due(loop: asyncio.AbstractEventLoop) -> None:
    gc.enable()
    set[object]()  # the collector looks at its thresholds when an object is made
    gc.disable()
    loop.call_later(_COLLECT_EVERY_S, _collect_if_due, loop)
