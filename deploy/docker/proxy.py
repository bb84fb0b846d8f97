"""Starts LiteLLM Proxy in its container: decides who serves each model, writes that down, and becomes the proxy.

What must hold: it is the same decision and the same command as `treasurer up` makes on one machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from gateway.stack.litellm import NOT_INHERITED, ConfigError, effective_config, proxy_command
from llm_service import core_dumps

_CONFIG = Path(os.environ.get("TREASURER_LITELLM_CONFIG", "/app/config/litellm.yaml"))
_EFFECTIVE = Path("/tmp/litellm/config.yaml")  # noqa: S108 (the container's own)


def main() -> None:
    """Never returns: the process becomes LiteLLM Proxy."""
    core_dumps.forbid()
    try:
        config = yaml.safe_load(_CONFIG.read_text(encoding="utf-8"))
        effective = effective_config(config, os.environ, os.environ.get("TREASURER_SIMULATED_URL") or None)
    except (OSError, yaml.YAMLError, ConfigError) as error:
        sys.exit(f"{_CONFIG} cannot be used: {error}")
    print(f"REAL models: {', '.join(effective.real) or 'none'}")
    print(f"SIMULATED models: {', '.join(effective.simulated) or 'none'}", flush=True)
    _EFFECTIVE.parent.mkdir(exist_ok=True)
    _EFFECTIVE.write_text(yaml.safe_dump(effective.config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    command, environ = proxy_command(
        python=Path(sys.executable),
        config_path=_EFFECTIVE,
        port=4000,
        workers=int(os.environ.get("TREASURER_PROXY_WORKERS", "2")),
        host="0.0.0.0",  # noqa: S104 (the compose network is its loopback)
    )
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    os.chdir(_EFFECTIVE.parent)
    os.execve(command[0], command, {**inherited, **environ})


if __name__ == "__main__":
    main()
