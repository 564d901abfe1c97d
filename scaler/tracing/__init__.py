"""Traces of requests and switches for OpenTelemetry, where the standard environment variables ask for them.

Owns whether they are asked for. The library comes with the extra ``otel`` and is imported only then.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scaler import extras
from scaler.errors import ConfigError

if TYPE_CHECKING:
    from scaler.manager import ModelManager
    from scaler.tracing.spans import Tracing

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"


def tracing(manager: ModelManager, environment: Mapping[str, str]) -> Tracing | None:
    """What traces the requests and switches of ``manager``; None where nobody asks for it.

    Raises MissingExtra where it is asked for and not installed, ConfigError for a variable that cannot be used.
    """
    if not _asked_for(environment):
        return None
    for name in PROTOCOLS:
        if (protocol := environment.get(name) or SPOKEN) != SPOKEN:
            raise ConfigError(f"{name}: {protocol!r} is not spoken here; expected {SPOKEN}, which is the default")
    for name in HEADERS:
        if any(one.strip() and "=" not in one for one in environment.get(name, "").split(",")):
            # Without the value, which holds a key as a rule.
            raise ConfigError(f"{name}: it cannot be read; expected NAME=VALUE, several with commas between them")
    with extras.importing("otel"):
        from scaler.tracing.spans import Tracing
    try:
        return Tracing(manager)
    except ValueError as error:
        raise ConfigError(f"OpenTelemetry cannot be set up: {error}; look at the OTEL_* variables") from error


def _asked_for(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = [one.strip() for one in environment.get("OTEL_TRACES_EXPORTER", "").split(",") if one.strip()]
    return "otlp" in exporters or (not exporters and any(environment.get(name) for name in ENDPOINTS))
