"""Settings that each of Treasurer's processes makes at its start. Standard library only: LiteLLM Proxy loads this too.

What must hold:
- A process that crashes leaves no copy of its memory on disk, because it holds secrets; nor do the processes that it
  started.
- Python's collector of cycles does not crash the process. Before Python 3.12 it may run in the middle of
  `ContextVar.set`; if an object that it collects sets a variable too (as an abandoned generator can, in its `finally`),
  freed memory is read: a segmentation fault (https://github.com/python/cpython/issues/148891, seen in LiteLLM Proxy).
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys

#: The largest core dump, in bytes. With 0, Linux would still pass dumps to the program that `core_pattern` names. With
#: 1 it does not, and no dump is small enough to be written to a file.
_MOST = 1
#: How many seconds pass between two chances for the collector to run.
_COLLECT_EVERY_S = 0.05


def forbid_core_dumps() -> None:
    """Forbid core dumps permanently, for this process and for those that it starts from now on."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    if most == resource.RLIM_INFINITY or most > _MOST:
        most = _MOST
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


def collect_between_callbacks() -> None:
    """From now on the collector runs only between two callbacks of the running event loop, at its usual thresholds.

    This does nothing from Python 3.12 on, which does not have the fault.

    Raises:
        RuntimeError: no event loop is running.
    """
    loop = asyncio.get_running_loop()
    if sys.version_info < (3, 12):
        _collect_if_due(loop)


def _collect_if_due(loop: asyncio.AbstractEventLoop) -> None:
    gc.enable()
    set[object]()  # a new object makes the collector check its thresholds
    gc.disable()
    loop.call_later(_COLLECT_EVERY_S, _collect_if_due, loop)
