"""The parts of the configuration that concern the process: server and telemetry."""

from typing import Annotated, Literal

from pydantic import Field

from engine.config.values import ConfigurationModel, Name, Port


class ServerConfig(ConfigurationModel):
    """Where and how the HTTP gateway listens.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        api_keys_env: Environment variable with the accepted keys, separated by commas;
            None lets everybody in.
        admin_key_env: Environment variable with the key of `/status`; None allows it
            from the loopback interface only.
        max_body_bytes: Largest request body.
        pre_stop: How long requests are still taken after SIGTERM, seconds; readiness is
            red at once, so that load balancers stop sending.
        drain: How long requests may go on after that, seconds.
        watch: Whether a change of the configuration file is applied by itself.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    api_keys_env: Name | None = None
    admin_key_env: Name | None = None
    max_body_bytes: Annotated[int, Field(ge=1_024, le=1_073_741_824)] = 33_554_432
    pre_stop: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 0.0
    drain: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 30.0
    watch: bool = False


class TelemetryConfig(ConfigurationModel):
    """Where spans, metrics and log lines go.

    Attributes:
        exporter: `none`, `console`, or `otlp` (over HTTP; the `OTEL_*` variables apply).
        endpoint: OTLP endpoint; None leaves it to `OTEL_EXPORTER_OTLP_ENDPOINT`.
        service_name: `service.name` of the resource; `OTEL_SERVICE_NAME` wins.
        logs: `pretty` for people, `json` for machines, or `none`.
    """

    exporter: Literal["none", "console", "otlp"] = "none"
    endpoint: str | None = None
    service_name: Name = "inference-gateway"
    logs: Literal["pretty", "json", "none"] = "pretty"
