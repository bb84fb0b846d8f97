"""The embedded Redis works in any folder, whatever the folder's name."""

from __future__ import annotations

from pathlib import Path

from gateway.stack.redis import EmbeddedRedis


def test_the_configuration_is_closed_to_others_and_its_name_is_no_pattern(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / 'a [b] "c" *?' / "redis", 1234, "hunter2")
    server.prepare()
    file = server.directory / "redis.conf"
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert "bind 127.0.0.1\n" in text
    assert "requirepass hunter2\n" in text
    assert r"a [b] \"c\" *?" in text
    command = server.command()
    assert command[1].endswith(r'/a \[b] "c" \*\?/redis/redis.conf')
    assert "hunter2" not in " ".join(command)
