"""From a configuration to a provider: known types, own types, and clear refusals."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine import (
    Attempt,
    BaseProvider,
    ChunkSource,
    ConfigurationError,
    Operation,
    ProviderConfig,
    ProviderFactory,
    Response,
)


class Own(BaseProvider):
    """An application's own adapter."""

    operations = frozenset()

    async def send(self, attempt: Attempt) -> Response:
        raise NotImplementedError

    def stream(self, attempt: Attempt) -> ChunkSource:
        raise NotImplementedError


@pytest.fixture
def own_type() -> Iterator[str]:
    """A registered type that is forgotten afterwards."""
    ProviderFactory.register_type("own", Own)
    yield "own"
    ProviderFactory.unregister_type("own")


def test_registered_type_is_made(own_type: str) -> None:
    """A type made known by hand is created from its configuration."""
    config = ProviderConfig(name="a", type=own_type)
    provider = ProviderFactory.create_provider(config)
    assert type(provider) is Own
    assert provider.config is config
    assert "own" in ProviderFactory.known_types()


@pytest.mark.parametrize("name", ["own", "openai"])
def test_taken_type_name_is_refused(own_type: str, name: str) -> None:
    """Neither an own type nor one of an entry point can be replaced."""
    with pytest.raises(ConfigurationError, match="is taken"):
        ProviderFactory.register_type(name, Own)


@pytest.mark.parametrize("wrong", [int, object(), Own.__init__])
def test_type_must_be_a_provider(wrong: Any) -> None:
    """Only subclasses of `BaseProvider` can be registered."""
    with pytest.raises(ConfigurationError, match="subclass"):
        ProviderFactory.register_type("wrong", wrong)
    assert "wrong" not in ProviderFactory.known_types()


def test_forgotten_type_is_unknown() -> None:
    """An unregistered type cannot be made, and unknown names are ignored."""
    ProviderFactory.register_type("passing", Own)
    ProviderFactory.unregister_type("passing")
    ProviderFactory.unregister_type("passing")
    with pytest.raises(ConfigurationError, match="unknown provider type 'passing'"):
        ProviderFactory.create_provider(ProviderConfig(name="a", type="passing"))


def test_type_of_an_entry_point_cannot_be_forgotten() -> None:
    """`unregister_type` concerns registered types only."""
    ProviderFactory.unregister_type("openai")
    assert "openai" in ProviderFactory.known_types()


def test_unknown_type_names_the_nearest() -> None:
    """The message names the known types and the one that was probably meant."""
    with pytest.raises(ValueError, match=r"did you mean 'openai'.*known types are .*vllm"):
        ProviderFactory.create_provider(ProviderConfig(name="a", type="opnai"))


def test_many_threads_make_providers(own_type: str) -> None:
    """Creation from many threads at once gives one provider each."""
    configs = [ProviderConfig(name=str(n), type=own_type) for n in range(200)]
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(ProviderFactory.create_provider, configs))
    assert [provider.name for provider in made] == [config.name for config in configs]


def run_with_packages(tmp_path: Path, packages: dict[str, str], code: str) -> str:
    """Run code in a process that sees these distributions' entry points."""
    for number, (module, source) in enumerate(packages.items()):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"pkg_{number}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pkg-{number}\nVersion: 1\n")
        entry = f"[inference_gateway.providers]\nthird = {module}:Adapter\n"
        (info / "entry_points.txt").write_text(entry)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, env=env, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


ADAPTER = """
    from engine import BaseProvider, ProviderFactory
    class Adapter(BaseProvider):
        operations = frozenset()
        async def send(self, attempt): ...
        def stream(self, attempt): ...
"""

MAKE = """
    from engine import ConfigurationError, ProviderConfig, ProviderFactory
    try:
        print(type(ProviderFactory.create_provider(ProviderConfig(name="a", type="third"))))
    except ConfigurationError as error:
        print("refused:", error)
"""


def test_entry_point_of_another_package_is_found(tmp_path: Path) -> None:
    """An installed package adds a type by its entry point alone."""
    assert "third_party.Adapter" in run_with_packages(tmp_path, {"third_party": ADAPTER}, MAKE)


def test_entry_point_that_cannot_be_imported_is_a_configuration_error(tmp_path: Path) -> None:
    """A missing dependency is named, without a traceback."""
    said = run_with_packages(tmp_path, {"third_party": "import not_installed_anywhere"}, MAKE)
    assert said.startswith("refused:")
    assert "'third' cannot be loaded" in said
    assert "not_installed_anywhere" in said


def test_entry_point_that_is_no_provider_is_refused(tmp_path: Path) -> None:
    """An entry point must lead to a `BaseProvider`."""
    said = run_with_packages(tmp_path, {"third_party": "class Adapter: ..."}, MAKE)
    assert "refused: third_party:Adapter must be a subclass" in said


def test_two_packages_with_one_type_are_refused(tmp_path: Path) -> None:
    """Which of two adapters wins is never left to chance."""
    packages = {"first_party": ADAPTER, "second_party": ADAPTER}
    said = run_with_packages(tmp_path, packages, MAKE)
    assert "refused: two installed packages offer the provider type 'third'" in said


def test_adapter_module_may_register_types_while_it_is_loaded(tmp_path: Path) -> None:
    """Registering at import time does not wait for itself for ever."""
    module = ADAPTER + "    ProviderFactory.register_type('fourth', Adapter)\n"
    assert "third_party.Adapter" in run_with_packages(tmp_path, {"third_party": module}, MAKE)


def test_adapter_that_says_nothing_of_its_operations_is_refused() -> None:
    """It would fail at the first request otherwise, and not where the mistake is."""

    class Silent(BaseProvider):
        async def send(self, attempt: Any) -> Any: ...

        def stream(self, attempt: Any) -> Any: ...

    with pytest.raises(ConfigurationError, match="must say what it offers"):
        ProviderFactory.register_type("silent", Silent)


def test_adapter_that_fails_to_be_made_is_a_configuration_error() -> None:
    """The provider and the kind of error are named, and not its text."""

    class Broken(BaseProvider):
        operations = frozenset({Operation.CHAT})

        def __init__(self, config: ProviderConfig) -> None:
            raise KeyError("sk-secret")

        async def send(self, attempt: Any) -> Any: ...

        def stream(self, attempt: Any) -> Any: ...

    ProviderFactory.register_type("broken-at-birth", Broken)
    try:
        with pytest.raises(ConfigurationError, match=r"'mine'.*raised KeyError") as caught:
            ProviderFactory.create_provider(ProviderConfig(name="mine", type="broken-at-birth"))
        assert "sk-secret" not in str(caught.value)
    finally:
        ProviderFactory.unregister_type("broken-at-birth")
