"""The configuration as pydantic models: strict, frozen, every bound finite.

The same models serve a file and Python code. Unknown keys are errors; which file and
line they stand in is added by `adapters.configuration`.
"""

from engine.config.gateway import GatewayConfig, IdempotencyConfig, RetryBudgetConfig
from engine.config.model import (
    FallbacksConfig,
    HedgingConfig,
    ModelConfig,
    RetriesConfig,
    TargetConfig,
)
from engine.config.provider import (
    AdaptiveConcurrencyConfig,
    EjectionConfig,
    HealthCheckConfig,
    LimitsConfig,
    ProviderConfig,
    TimeoutsConfig,
)
from engine.config.server import ServerConfig, TelemetryConfig
from engine.config.values import BalancerName, ConfigurationModel, ModelName

__all__ = [
    "AdaptiveConcurrencyConfig",
    "BalancerName",
    "ConfigurationModel",
    "EjectionConfig",
    "FallbacksConfig",
    "GatewayConfig",
    "HealthCheckConfig",
    "HedgingConfig",
    "IdempotencyConfig",
    "LimitsConfig",
    "ModelConfig",
    "ModelName",
    "ProviderConfig",
    "RetriesConfig",
    "RetryBudgetConfig",
    "ServerConfig",
    "TargetConfig",
    "TelemetryConfig",
    "TimeoutsConfig",
]
