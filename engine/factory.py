"""`ProviderFactory`: from a configuration to a provider."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

from engine.config import ProviderConfig
from engine.errors import ConfigurationError
from engine.provider import BaseProvider

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "inference_gateway.providers"


class ProviderFactory:
    """Makes providers of any known type.

    Types are found by entry point (group `inference_gateway.providers`), looked up once
    per process, or made known with `register_type`. Safe to use from any thread.
    """

    # Reentrant: an adapter's module may register further types while it is imported.
    _lock: ClassVar[threading.RLock] = threading.RLock()
    _registered: ClassVar[dict[str, type[BaseProvider]]] = {}
    _loaded: ClassVar[dict[str, type[BaseProvider]]] = {}
    _entry_points: ClassVar[dict[str, EntryPoint] | None] = None

    @staticmethod
    def create_provider(config: ProviderConfig) -> BaseProvider:
        """Make the provider that `config` describes: no I/O, no task, thread-safe.

        Raises:
            ConfigurationError: (a `ValueError`) If the type is unknown, or a setting that
                the type needs, such as a key or a URL, is missing. Says what to do.
        """
        adapter_class = ProviderFactory.adapter_class(config.type)
        try:
            return adapter_class(config)
        except ConfigurationError:
            raise
        except Exception as error:  # the border to somebody's adapter
            msg = (
                f"the adapter of provider {config.name!r} (type {config.type!r}) cannot be made: "
                f"it raised {type(error).__name__}"
            )
            raise ConfigurationError(msg) from error

    @staticmethod
    def adapter_class(type_name: str) -> type[BaseProvider]:
        """The adapter class of a provider type.

        Raises:
            ConfigurationError: If no such type is known, or its module cannot be imported.
        """
        found = ProviderFactory._loaded.get(type_name)
        return found if found is not None else ProviderFactory._load(type_name)

    @staticmethod
    def register_type(type_name: str, adapter_class: type[BaseProvider]) -> None:
        """Make a provider type known to this process.

        Raises:
            ConfigurationError: If the name is taken, or the class is no usable `BaseProvider`.
        """
        _checked(adapter_class, f"the adapter of type {type_name!r}")
        with ProviderFactory._lock:
            if type_name in ProviderFactory._known():
                msg = f"the provider type {type_name!r} is taken: choose another name"
                raise ConfigurationError(msg)
            ProviderFactory._registered[type_name] = adapter_class
            ProviderFactory._loaded[type_name] = adapter_class

    @staticmethod
    def unregister_type(type_name: str) -> None:
        """Forget a type made known by `register_type`; unknown names are ignored."""
        with ProviderFactory._lock:
            if ProviderFactory._registered.pop(type_name, None) is not None:
                del ProviderFactory._loaded[type_name]

    @staticmethod
    def forget_entry_points() -> None:
        """Look for installed types anew at the next call: a package was just installed."""
        with ProviderFactory._lock:
            ProviderFactory._entry_points = None
            ProviderFactory._loaded = dict(ProviderFactory._registered)

    @staticmethod
    def known_types() -> list[str]:
        """The names of all provider types, sorted."""
        with ProviderFactory._lock:
            return sorted(ProviderFactory._known())

    @staticmethod
    def _known() -> set[str]:
        return {*ProviderFactory._found(), *ProviderFactory._registered}

    @staticmethod
    def _found() -> dict[str, EntryPoint]:
        """Entry points by name; read from the installed packages once per process."""
        if ProviderFactory._entry_points is None:
            # 20 ms, which only those need to pay who make a provider.
            from importlib.metadata import entry_points  # noqa: PLC0415

            found: dict[str, EntryPoint] = {}
            for entry in entry_points(group=ENTRY_POINT_GROUP):
                other = found.setdefault(entry.name, entry)
                if other.value != entry.value:
                    msg = (
                        f"two installed packages offer the provider type {entry.name!r}: "
                        f"{other.value} and {entry.value}; uninstall one of them"
                    )
                    raise ConfigurationError(msg)
            ProviderFactory._entry_points = found
        return ProviderFactory._entry_points

    @staticmethod
    def _load(type_name: str) -> type[BaseProvider]:
        with ProviderFactory._lock:
            if type_name in ProviderFactory._loaded:
                return ProviderFactory._loaded[type_name]
            entry = ProviderFactory._found().get(type_name)
            if entry is None:
                raise ConfigurationError(_unknown(type_name, sorted(ProviderFactory._known())))
            try:
                adapter_class = entry.load()
            except (ImportError, AttributeError) as error:
                msg = f"the adapter of provider type {type_name!r} cannot be loaded: {error}"
                raise ConfigurationError(msg) from error
            checked = ProviderFactory._loaded[type_name] = _checked(adapter_class, entry.value)
            return checked


def _checked(adapter_class: object, what: str) -> type[BaseProvider]:
    """The class; refused here is what would only fail later, at somebody's request."""
    if not (isinstance(adapter_class, type) and issubclass(adapter_class, BaseProvider)):
        msg = f"{what} must be a subclass of engine.BaseProvider"
        raise ConfigurationError(msg)
    if not isinstance(getattr(adapter_class, "operations", None), frozenset):
        msg = f"{what} must say what it offers: operations = frozenset({{Operation.CHAT, ...}})"
        raise ConfigurationError(msg)
    return adapter_class


def _unknown(type_name: str, known: list[str]) -> str:
    import difflib  # noqa: PLC0415 - for this mistake only

    near = difflib.get_close_matches(type_name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown provider type {type_name!r}: {hint}known types are {', '.join(known)}"
