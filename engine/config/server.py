"""The parts of the configuration that concern the process: server and telemetry."""

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.config.values import ConfigurationModel, Name, Port


class ServerConfig(ConfigurationModel):
    """Where and how the HTTP gateway listens.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        api_keys_env: Environment variable with the accepted keys, separated by commas;
            None lets everybody in.
        admin_key_env: Environment variable with the operator's key, which opens `/status`
            and the admin routes; None leaves `/status` to the loopback interface, and the
            admin routes to `admin_port`.
        admin_port: Port of a listener of its own for `/status` and the admin routes, which
            are then served nowhere else; 0 lets the system choose, None opens none.
        admin_host: Address of that listener; any other than the loopback interface needs
            an `admin_key_env`.
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
    admin_port: Port | None = None
    admin_host: str = "127.0.0.1"
    max_body_bytes: Annotated[int, Field(ge=1_024, le=1_073_741_824)] = 33_554_432
    pre_stop: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 0.0
    drain: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 30.0
    watch: bool = False

    @model_validator(mode="after")
    def _keep_strangers_from_the_admin_listener(self) -> Self:
        if self.admin_port is None:
            return self
        if self.admin_port and self.admin_port == self.port:
            msg = "admin_port must differ from port: leave it out to use the same listener"
            raise ValueError(msg)
        if self.admin_key_env is None and not _is_loopback(self.admin_host):
            msg = "admin_host can be reached from other machines: set admin_key_env, too"
            raise ValueError(msg)
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class TelemetryConfig(ConfigurationModel):
    """Where spans, metrics and log lines go.

    Attributes:
        exporter: `none`, `console`, or `otlp` (over HTTP; the `OTEL_*` variables apply).
        endpoint: OTLP endpoint; None leaves it to `OTEL_EXPORTER_OTLP_ENDPOINT`.
        service_name: `service.name` of the resource; `OTEL_SERVICE_NAME` wins.
        logs: `pretty` for people, `json` for machines, or `none`.
        propagate: Whether requests to providers carry the trace's ids in a `traceparent`
            header; worth it only where the providers are part of the same trace.
    """

    exporter: Literal["none", "console", "otlp"] = "none"
    endpoint: str | None = None
    service_name: Name = "inference-gateway"
    logs: Literal["pretty", "json", "none"] = "pretty"
    propagate: bool = False
