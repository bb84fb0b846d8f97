"""The simulated provider uses nothing of Treasurer, so that its invoice is an independent proof."""

import ast
import subprocess
import sys
from pathlib import Path

import gateway.stack.simulated_provider

PACKAGE = "gateway.stack.simulated_provider"


def test_no_module_imports_treasurer() -> None:
    for path in Path(gateway.stack.simulated_provider.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top not in ("llm_service", "agents", "tests"), f"{path.name} imports {name}"
                assert top != "gateway" or name.startswith(PACKAGE), f"{path.name} imports {name}"


def test_no_module_of_treasurer_is_loaded() -> None:
    code = (
        "import sys, gateway.stack.simulated_provider.server\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('llm_service', 'agents', 'litellm')"
        " or m.startswith('gateway.') and not (m == 'gateway.stack' or m.startswith('gateway.stack.simulated'))])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_price_list_is_neither_litellm_s_nor_treasurer_s() -> None:
    """The program runs and bills where neither is installed, and opens only its own files and those of genai-prices."""
    code = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == 'open' else None)\n"
        "from gateway.stack.simulated_provider.prices import PriceList, Used\n"
        "assert PriceList().rates('openai', 'gpt-4o-mini').cost(Used(input=1)).nano == 150\n"
        "print([name for name in opened if 'litellm' in name or 'llm_service' in name or name.endswith('.json')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
