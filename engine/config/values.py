"""Value types that all parts of the configuration share, each with its bounds."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65_535)]


def _plain_name(value: str) -> str:
    """Names end up in headers, metrics and URLs, so they hold printable ASCII only."""
    if not value.isascii() or not value.isprintable() or value != value.strip():
        msg = "must be printable ASCII without spaces at its ends"
        raise ValueError(msg)
    return value


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain_name)]
BalancerName = Literal["weighted_random", "smooth_weighted", "least_loaded"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]


class ConfigurationModel(BaseModel):
    """What all parts of the configuration share: frozen, and no unknown keys."""

    # Building the validators takes a third of what `import engine` costs, so it waits for
    # the first configuration that is read.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        defer_build=True,
    )
