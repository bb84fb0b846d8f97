"""What a running stack publishes about itself in `<data_dir>/stack.json`: addresses, process ids, and files of secrets.

What must hold:
The file counts only while the stack is ready and its supervisor lives.
Only its owner may read it, because its addresses contain passwords.
It is replaced in one step, so that a reader never finds it half written.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, ValidationError

from gateway.settings import Settings, load_settings

_FILE = "stack.json"


class NotRunning(Exception):
    """A command needs a running Treasurer (or its database), and there is none."""


class StackState(BaseModel):
    """Addresses, secrets' files and process ids of a running stack."""

    pid: int
    pid_started: float  # the supervisor's start time, because its process id may be reused
    started_at: datetime
    data_dir: Path
    database_url: str
    redis_url: str
    proxy_url: str
    provider_url: str | None  # the simulated provider; None when every provider is real
    gateway_url: str  # shared by all gateway processes
    gateway_urls: list[str]  # one for each gateway process
    worker_urls: list[str] = []  # where each worker says how it is
    grant_secret_file: Path
    proxy_master_key_file: Path
    admin_key_file: Path
    real: list[str]  # models that a real provider serves, or a server of the operator's
    own: list[str] = []  # the models of `real` that only servers on this machine serve
    simulated: list[str]  # models that the simulated provider serves
    pids: dict[str, int]  # by the name of the part: "postgres", "gateway-1", …

    def secret(self, file: Path) -> str:
        """The content of one of the secrets' files."""
        return file.read_text(encoding="utf-8").strip()

    @property
    def grant_secret(self) -> str:
        return self.secret(self.grant_secret_file)

    @property
    def proxy_master_key(self) -> str:
        return self.secret(self.proxy_master_key_file)

    @property
    def admin_key(self) -> str:
        return self.secret(self.admin_key_file)

    @classmethod
    def read(cls, data_dir: Path) -> StackState | None:
        """The stack that runs on the data folder; None if none does (a stale file counts as none)."""
        try:
            state = cls.model_validate_json((data_dir / _FILE).read_bytes())
            if abs(psutil.Process(state.pid).create_time() - state.pid_started) > 2:
                return None
        except (FileNotFoundError, NotADirectoryError, ValidationError, psutil.NoSuchProcess):
            return None
        return state

    def write(self) -> None:
        """Replace the file."""
        file = self.data_dir / _FILE
        fresh = file.with_suffix(f".{os.getpid()}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(self.model_dump_json(indent=2))
        fresh.replace(file)

    @staticmethod
    def remove(data_dir: Path) -> None:
        """Delete the file, if it exists."""
        (data_dir / _FILE).unlink(missing_ok=True)


def running_state(settings: Settings | None = None) -> StackState:
    """The stack that runs on the data folder.

    Raises:
        NotRunning: the stack does not run.
    """
    settings = settings or load_settings()
    state = StackState.read(settings.data_dir)
    if state is None:
        raise NotRunning(f"Treasurer is not running in {settings.data_dir}: start it with `treasurer up`.")
    return state
