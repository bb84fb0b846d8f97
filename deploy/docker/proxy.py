"""Starts LiteLLM Proxy in its container: decides which provider serves each model, writes that into LiteLLM's
configuration, and replaces itself with the proxy.

What must hold:
- The decision and the command are the same as those of `treasurer up` on one machine.
- The configuration is in a folder that nobody else can write to, because LiteLLM also loads other files from that
  folder.

Environment: TREASURER_LITELLM_CONFIG, TREASURER_SIMULATED_URL, TREASURER_PROXY_WORKERS (2), TREASURER_PROXY_HOST
(127.0.0.1), TREASURER_PROXY_PORT (4000), TREASURER_PROXY_DIR (a new folder at each start), and the plugin's settings.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import yaml

from gateway.stack.litellm import NOT_INHERITED, ConfigError, effective_config, proxy_command
from gateway.stack.own_folder import FolderNotOurs, own_folder
from llm_service import process

_CONFIG = Path(os.environ.get("TREASURER_LITELLM_CONFIG", "/app/config/litellm.yaml"))


def main() -> None:
    """Never returns: LiteLLM Proxy replaces this process."""
    process.forbid_core_dumps()
    try:
        config = yaml.safe_load(_CONFIG.read_text(encoding="utf-8"))
        effective = effective_config(config, os.environ, os.environ.get("TREASURER_SIMULATED_URL") or None)
    except (OSError, yaml.YAMLError, ConfigError) as error:
        sys.exit(f"{_CONFIG} cannot be used: {error}")
    print(f"REAL models: {', '.join(effective.real) or 'none'}")
    print(f"SIMULATED models: {', '.join(effective.simulated) or 'none'}", flush=True)
    try:
        folder = own_folder(Path(os.environ.get("TREASURER_PROXY_DIR") or tempfile.mkdtemp(prefix="litellm-")))
        port, workers = _number("TREASURER_PROXY_PORT", 4000, 65535), _number("TREASURER_PROXY_WORKERS", 2, 64)
    except (FolderNotOurs, OSError, ValueError) as error:
        sys.exit(f"LiteLLM Proxy does not start: {error}")
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(effective.config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    command, environ = proxy_command(
        python=Path(sys.executable),
        config_path=file,
        port=port,
        workers=workers,
        host=os.environ.get("TREASURER_PROXY_HOST") or "127.0.0.1",
    )
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    os.chdir(folder)
    os.execve(command[0], command, {**inherited, **environ})


def _number(name: str, default: int, most: int) -> int:
    given = os.environ.get(name) or str(default)
    if not given.isdecimal() or not 1 <= int(given) <= most:
        raise ValueError(f"{name} is {given!r}, not a number from 1 to {most}")
    return int(given)


if __name__ == "__main__":
    main()
