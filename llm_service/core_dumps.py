"""No core dumps of processes that hold secrets. Standard library only: LiteLLM Proxy loads it too.

What must hold: a process that crashes, and whatever it has started, leaves no copy of its memory behind.
"""

from __future__ import annotations

import resource

#: In bytes. Not 0: at 0 Linux still hands a dump to a program that `core_pattern` names, at 1 to nobody; and no file
#: is as small as that.
_MOST = 1


def forbid() -> None:
    """For this process and those that it starts from now on; for good."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    if most == resource.RLIM_INFINITY or most > _MOST:
        most = _MOST
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
