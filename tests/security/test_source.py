"""Rule S22: nothing in the source can turn data of a request into code, SQL, or a process."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("engine", "adapters") for path in ROOT.glob(f"{folder}/**/*.py"))

CALLS = {
    "eval", "exec", "compile", "__import__", "input", "breakpoint", "os.system", "os.popen",
    "os.execv", "os.execve", "os.execvp", "os.spawnv", "os.posix_spawn", "os.startfile",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all",
    "asyncio.create_subprocess_shell", "asyncio.create_subprocess_exec", "anyio.run_process",
    "anyio.open_process", "logging.config.listen", "tempfile.mktemp", "subprocess.run",
    "subprocess.call", "subprocess.check_output", "subprocess.check_call", "subprocess.getoutput",
}  # fmt: skip
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jinja2", "mako", "sqlite3",
    "sqlalchemy", "psycopg", "code", "codeop", "pty", "xmlrpc", "xml", "lxml", "telnetlib",
}  # fmt: skip
ALLOWED = {
    # Our own program and a fixed list of arguments; its settings go through standard input.
    "adapters/providers/llamacpp_server.py": {"subprocess.Popen"},
}
IMPORTS_BY_NAME = {
    # A name from a table of this project, and a package that is named in the code.
    "adapters/cli/main.py",
    "adapters/providers/llamacpp_child.py",
    "engine/__init__.py",
}


def dotted(node: ast.expr) -> str:
    """`os.system` of the expression `os.system`; empty if it is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def findings(source: str, name: str) -> list[str]:
    """What of a source is forbidden."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            forbidden = called in CALLS or called == "subprocess.Popen"
            if called.endswith("import_module") and name not in IMPORTS_BY_NAME:
                found.append(called)
            if forbidden and called not in ALLOWED.get(name, set()):
                found.append(called)
            if any(word.arg == "shell" for word in node.keywords):
                found.append(f"{called}(shell=...)")
        elif isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            whole = [f"{module}.{each.name}" for each in node.names]
            found += [each for each in whole if each in CALLS or module.split(".")[0] in MODULES]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_s22_no_data_becomes_code(path: Path) -> None:
    """No eval, no unpickling, no YAML objects, no templates, no SQL, no shell."""
    name = path.relative_to(ROOT).as_posix()
    assert findings(path.read_text(encoding="utf-8"), name) == []


@pytest.mark.parametrize(
    "source",
    ["eval(x)", "import pickle", "from os import system", "yaml.load(x)", "import jinja2.sandbox",
     "subprocess.Popen(x)", "run(x, shell=True)", "importlib.import_module(x)",
     "from xml import sax"],
)  # fmt: skip
def test_s22_the_lint_finds_what_it_is_for(source: str) -> None:
    """Each kind of mistake is seen."""
    assert findings(source, "adapters/new.py")
