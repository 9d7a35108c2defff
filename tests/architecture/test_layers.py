"""Who may import whom, checked by import-linter and by a fresh interpreter."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_contracts_are_kept() -> None:
    """The contracts of pyproject.toml hold."""
    command = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


FOREIGN = ["httpx", "aiohttp", "starlette", "hypercorn", "uvloop", "trio", "yaml", "adapters"]


def test_import_engine_loads_nothing_of_the_outside() -> None:
    """The whole engine loads no HTTP library, no server and no adapter."""
    for name in FOREIGN:
        assert importlib.util.find_spec(name) is not None, "the test would prove nothing"
    loaded = f"[name for name in {FOREIGN} if name in sys.modules]"
    code = f"from engine import *; import sys; print({loaded})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("engine/**/*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_engine_module_can_be_imported_first(path: Path) -> None:
    """No module depends on another having been imported before it."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
