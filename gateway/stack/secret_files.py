"""The stack's own secrets: made on the first start, kept in files that only their owner may read."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class StackSecrets:
    """The value of each secret, and the folder of their files. `admin_key_is_new`: it was just made, so show it once."""

    directory: Path
    grant_secret: str
    proxy_master_key: str
    admin_key: str
    postgres_password: str
    redis_password: str
    admin_key_is_new: bool

    def file(self, name: str) -> Path:
        return self.directory / name


def stack_secrets(settings: Settings) -> StackSecrets:
    """Read the secrets, and make those that are missing. A secret in the settings replaces the stored one, and is
    stored."""
    directory = settings.data_dir.resolve() / "secrets"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    admin_key_is_new = settings.admin_key is None and not (directory / "admin_key").exists()

    def kept(name: str, prefix: str, given: SecretStr | None = None) -> str:
        file = directory / name
        value = given.get_secret_value() if given is not None else None
        if value is None and file.exists():
            return file.read_text(encoding="utf-8").strip()
        value = value or prefix + secrets.token_urlsafe(32)
        fresh = directory / f".{name}.{os.getpid()}"
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            out.write(value + "\n")
        fresh.replace(file)
        return value

    return StackSecrets(
        directory=directory,
        grant_secret=kept("grant_secret", "", settings.grant_secret),
        proxy_master_key=kept("proxy_master_key", "sk-", settings.proxy_master_key),
        admin_key=kept("admin_key", "sk-tr-admin-", settings.admin_key),
        postgres_password=kept("postgres_password", ""),
        redis_password=kept("redis_password", ""),
        admin_key_is_new=admin_key_is_new,
    )
