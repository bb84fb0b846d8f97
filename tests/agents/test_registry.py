"""The catalogue: an agent's logic is found by its module's name, and an unusable module is reported with the reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agents import catalog, registry
from agents.catalog import digest
from agents.registry import BrokenLogic, find_agent, load_catalogue, names_of_logic
from llm_service.errors import NotFound


def test_every_module_of_the_catalogue_is_an_agent() -> None:
    assert load_catalogue().keys() == set(names_of_logic())
    assert find_agent("digest") is digest.DEFINITION
    assert find_agent("digest").output_type is digest.Digest


def test_an_agent_is_one_file_of_at_most_a_hundred_lines() -> None:
    for module in Path(catalog.__file__).parent.glob("*.py"):
        assert len(module.read_text().splitlines()) <= 100, module.name


@pytest.mark.parametrize("name", ["nobody", "", "_hidden", "../digest", "digest.DEFINITION", "os"])
def test_a_name_that_no_module_has_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(NotFound, match=r"The agents are: assistant, digest"):
        find_agent(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A further folder of the catalogue, for the modules of a test, which are forgotten after it."""
    monkeypatch.setattr(catalog, "__path__", [*catalog.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_load", registry._load.__wrapped__)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("agents.catalog."):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("no_module", "import a_library_that_is_not_there", "cannot be imported: ModuleNotFoundError: No module named"),
        ("no_python", "def", "cannot be imported: .*SyntaxError"),
        ("no_luck", "1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("no_definition", "definition = 1", "has no DEFINITION that is an AgentDefinition"),
        ("no_type", "DEFINITION = 'digest'", "has no DEFINITION that is an AgentDefinition"),
        ("no_namesake", "from agents.catalog.digest import DEFINITION", "defines 'digest'"),
    ],
)
def test_a_module_that_cannot_be_used_is_named_and_keeps_no_other_from_running(
    folder: Path, name: str, text: str, reason: str
) -> None:
    (folder / f"{name}.py").write_text(text)
    assert name in names_of_logic()
    for broken in (lambda: find_agent(name), load_catalogue):
        with pytest.raises(BrokenLogic, match=rf"agents/catalog/{name}\.py {reason}"):
            broken()
    assert find_agent("digest") is digest.DEFINITION


@pytest.mark.parametrize(
    ("defaults", "said"),
    [({"budget": "much"}, "budget: 'much'"), ({"colour": "red"}, "colour"), ({"reserve": "2"}, "is above the budget"),
     ({"tools": ["fly"]}, "has no tool 'fly'")],
)  # fmt: skip
def test_defaults_that_are_no_configuration_are_found_with_the_module(defaults: dict[str, object], said: str) -> None:
    module = type(digest)("digest")
    module.__dict__["DEFINITION"] = replace(digest.DEFINITION, defaults=defaults)
    with pytest.raises(BrokenLogic, match=f"defaults that are no configuration: .*{said}"):
        registry.definition_of("digest", module)


def test_an_agent_that_would_repeat_calls_of_an_mcp_server_in_silence_is_not_run(folder: Path) -> None:
    text = """
from agents.catalog.digest import DEFINITION as _OTHER
from agents.tools.mcp import McpServer
from dataclasses import replace
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
agent = Agent(deps_type=object, output_type=_OTHER.output_type, toolsets=[SERVER])
DEFINITION = replace(_OTHER, name="NAME", agent=agent)
"""
    servers = {
        "plain": "MCPToolset('http://127.0.0.1:9/mcp', id='desk').prefixed('a')",
        "ours": "McpServer('http://127.0.0.1:9/mcp', id='desk').prefixed('a')",
    }
    for name, server in servers.items():
        (folder / f"{name}.py").write_text(text.replace("SERVER", server).replace("NAME", name))
    assert find_agent("ours").name == "ours"
    with pytest.raises(BrokenLogic, match=r"plain\.py uses MCPToolset 'desk' as an MCPToolset.*McpServer"):
        find_agent("plain")
