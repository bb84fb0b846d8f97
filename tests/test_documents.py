"""Everything that the documents name exists: the folders of docs/architecture.md, the checks of the audit, and all
paths."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

from llm_service.treasury.audit.checks import RULES

ROOT = Path(__file__).parent.parent
PACKAGES = ("llm_service", "agents", "gateway")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "overspend" / "README.md",
]
#: A path on a page is relative to the root or to one of these folders.
BASES = ("", *PACKAGES, "tests")


def all_files() -> set[PurePosixPath]:
    """Every file of the repository, without environments, caches and data, whose folders begin with a dot."""
    found: set[PurePosixPath] = set()
    for top in ROOT.iterdir():
        if top.is_dir() and not top.name.startswith("."):
            found |= {PurePosixPath(file.relative_to(ROOT)) for file in top.rglob("*") if file.is_file()}
        elif top.is_file():
            found.add(PurePosixPath(top.name))
    return {file for file in found if "__pycache__" not in file.parts}


def rooms_of_the_page() -> set[PurePosixPath]:
    """The paths in the tree of docs/architecture.md, where two spaces indent each level, and a folder ends with a
    slash."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    block = re.search(r"<!-- rooms -->\n```text\n(.*?)```", page, re.DOTALL)
    assert block is not None, "docs/architecture.md has no tree of rooms"
    rooms: set[PurePosixPath] = set()
    above: list[str] = []
    for line in block[1].splitlines():
        entry = re.match(r"( *)([\w.]+/?)(?: {2,}|$)", line)
        assert entry is not None, line
        del above[len(entry[1]) // 2 :]
        rooms.add(PurePosixPath(*above, entry[2].rstrip("/")))
        if entry[2].endswith("/"):
            above.append(entry[2].rstrip("/"))
    return rooms


def rooms_of_the_tree() -> set[PurePosixPath]:
    ours = {path for path in all_files() if path.parts[0] in PACKAGES}
    folders = {folder for path in ours for folder in path.parents if folder.parts}
    ground = {path for path in ours if path.match("llm_service/*.py") and path.name != "__init__.py"}
    return folders | ground


def test_the_architecture_page_names_every_room_and_no_other() -> None:
    page, tree = rooms_of_the_page(), rooms_of_the_tree()
    assert sorted(map(str, tree - page)) == [], "rooms that docs/architecture.md leaves out"
    assert sorted(map(str, page - tree)) == [], "rooms in docs/architecture.md that do not exist"


def test_the_reports_page_lists_every_check_of_the_audit_and_no_other() -> None:
    table = (ROOT / "docs" / "reports.md").read_text("utf-8").partition("| | check |")[2].partition("\n\n")[0]
    rows = [re.match(r"\| (\w+) \| (.*?) \|", line) for line in table.splitlines()[2:]]
    named = [(row[1], name) for row in rows if row is not None for name in re.findall(r"`(\w+)`", row[2])]
    assert sorted(named) == sorted((rule.invariant, rule.name) for rule in RULES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    files = all_files()
    in_code = re.findall(r"`([\w./-]+\.(?:py|sql|lua|yaml|yml|toml|md|txt|Dockerfile))`", text)
    missing = [name for name in in_code if not exists(name, page, files)]
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", text)
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def exists(name: str, page: Path, files: set[PurePosixPath]) -> bool:
    """Whether a file exists: a path with a folder is looked up from each base, and a bare name may be in any folder."""
    if "/" not in name:
        return any(file.name == name for file in files)
    named = PurePosixPath(name)
    return (page.parent / name).exists() or any(PurePosixPath(base) / named in files for base in BASES)


def test_no_test_module_is_imported_by_another() -> None:
    imported = re.compile(
        r"^\s*(?:from|import) tests(?:\.\w+)*\.(?:test_\w+|conftest)\b|^\s*from tests(?:\.\w+)* import test_\w+", re.M
    )
    found = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("*.py")
        if imported.search(file.read_text("utf-8"))
    ]
    assert found == []
