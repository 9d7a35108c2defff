"""The routing engine: everything an application needs stands here.

A name is loaded when it is first used: `import engine` costs next to nothing, an adapter
that needs the port does not load the router, and `from engine import Router` loads it all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.answer_stream import AnswerStream
    from engine.attempt import Attempt
    from engine.config import (
        AdaptiveConcurrencyConfig,
        EjectionConfig,
        FallbacksConfig,
        GatewayConfig,
        HealthCheckConfig,
        HedgingConfig,
        IdempotencyConfig,
        LimitsConfig,
        ModelConfig,
        ProviderConfig,
        RetriesConfig,
        RetryBudgetConfig,
        ServerConfig,
        TargetConfig,
        TelemetryConfig,
        TimeoutsConfig,
    )
    from engine.configuration_change import ChangeEntry, ChangeKind, ConfigurationChange
    from engine.errors import (
        ActorCrashedError,
        AdapterError,
        BrokenError,
        CallerError,
        ConfigurationError,
        ConnectError,
        ContentFilterError,
        ContextLengthError,
        DeadlineExceededError,
        ErrorClass,
        ExhaustedError,
        GatewayError,
        InvalidRequestError,
        MailboxFullError,
        MisconfiguredError,
        ModelNotFoundError,
        NoProviderAvailableError,
        OverloadedError,
        ProviderClosedError,
        ProviderError,
        RejectedError,
        Replay,
        RouterClosedError,
        SilentError,
        StreamTruncatedError,
        TransientError,
        UnsupportedOperationError,
    )
    from engine.factory import ProviderFactory
    from engine.ledger import LedgerStatus, Outcome
    from engine.mailbox import MailboxStatus
    from engine.model_catalogue import ModelEntry
    from engine.operations import (
        ChatRequest,
        ChatResponse,
        Chunk,
        CompletionRequest,
        CompletionResponse,
        EmbeddingRequest,
        EmbeddingResponse,
        Operation,
        Replayed,
        Request,
        Response,
        Usage,
    )
    from engine.priority import Priority
    from engine.provider import BaseProvider, ChunkSource, NoOptions
    from engine.registry import ProviderRegistry
    from engine.router import Router
    from engine.status import ActorState, ActorStatus, RouterStatus
    from engine.streaming import ResponseStream

__all__ = [
    "ActorCrashedError",
    "ActorState",
    "ActorStatus",
    "AdapterError",
    "AdaptiveConcurrencyConfig",
    "AnswerStream",
    "Attempt",
    "BaseProvider",
    "BrokenError",
    "CallerError",
    "ChangeEntry",
    "ChangeKind",
    "ChatRequest",
    "ChatResponse",
    "Chunk",
    "ChunkSource",
    "CompletionRequest",
    "CompletionResponse",
    "ConfigurationChange",
    "ConfigurationError",
    "ConnectError",
    "ContentFilterError",
    "ContextLengthError",
    "DeadlineExceededError",
    "EjectionConfig",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "ErrorClass",
    "ExhaustedError",
    "FallbacksConfig",
    "GatewayConfig",
    "GatewayError",
    "HealthCheckConfig",
    "HedgingConfig",
    "IdempotencyConfig",
    "InvalidRequestError",
    "LedgerStatus",
    "LimitsConfig",
    "MailboxFullError",
    "MailboxStatus",
    "MisconfiguredError",
    "ModelConfig",
    "ModelEntry",
    "ModelNotFoundError",
    "NoOptions",
    "NoProviderAvailableError",
    "Operation",
    "Outcome",
    "OverloadedError",
    "Priority",
    "ProviderClosedError",
    "ProviderConfig",
    "ProviderError",
    "ProviderFactory",
    "ProviderRegistry",
    "RejectedError",
    "Replay",
    "Replayed",
    "Request",
    "Response",
    "ResponseStream",
    "RetriesConfig",
    "RetryBudgetConfig",
    "Router",
    "RouterClosedError",
    "RouterStatus",
    "ServerConfig",
    "SilentError",
    "StreamTruncatedError",
    "TargetConfig",
    "TelemetryConfig",
    "TimeoutsConfig",
    "TransientError",
    "UnsupportedOperationError",
    "Usage",
]

_HOMES = {
    "engine.answer_stream": ("AnswerStream",),
    "engine.configuration_change": (
        "ChangeEntry",
        "ChangeKind",
        "ConfigurationChange",
    ),
    "engine.attempt": ("Attempt",),
    "engine.config": (
        "AdaptiveConcurrencyConfig",
        "EjectionConfig",
        "FallbacksConfig",
        "GatewayConfig",
        "HealthCheckConfig",
        "HedgingConfig",
        "IdempotencyConfig",
        "LimitsConfig",
        "ModelConfig",
        "ProviderConfig",
        "RetriesConfig",
        "RetryBudgetConfig",
        "ServerConfig",
        "TargetConfig",
        "TelemetryConfig",
        "TimeoutsConfig",
    ),
    "engine.errors": (
        "ActorCrashedError",
        "AdapterError",
        "BrokenError",
        "CallerError",
        "ConfigurationError",
        "ConnectError",
        "ContentFilterError",
        "ContextLengthError",
        "DeadlineExceededError",
        "ErrorClass",
        "ExhaustedError",
        "GatewayError",
        "InvalidRequestError",
        "MailboxFullError",
        "MisconfiguredError",
        "ModelNotFoundError",
        "NoProviderAvailableError",
        "OverloadedError",
        "ProviderClosedError",
        "ProviderError",
        "RejectedError",
        "Replay",
        "RouterClosedError",
        "SilentError",
        "StreamTruncatedError",
        "TransientError",
        "UnsupportedOperationError",
    ),
    "engine.factory": ("ProviderFactory",),
    "engine.ledger": (
        "LedgerStatus",
        "Outcome",
    ),
    "engine.mailbox": ("MailboxStatus",),
    "engine.model_catalogue": ("ModelEntry",),
    "engine.operations": (
        "ChatRequest",
        "ChatResponse",
        "Chunk",
        "CompletionRequest",
        "CompletionResponse",
        "EmbeddingRequest",
        "EmbeddingResponse",
        "Operation",
        "Replayed",
        "Request",
        "Response",
        "Usage",
    ),
    "engine.priority": ("Priority",),
    "engine.provider": (
        "BaseProvider",
        "ChunkSource",
        "NoOptions",
    ),
    "engine.registry": ("ProviderRegistry",),
    "engine.router": ("Router",),
    "engine.status": (
        "ActorState",
        "ActorStatus",
        "RouterStatus",
    ),
    "engine.streaming": ("ResponseStream",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # or every misspelt name would pass the type checker

    def __getattr__(name: str) -> Any:
        """Load a public name from its module (PEP 562)."""
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(home), name)
        return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return list(__all__)
