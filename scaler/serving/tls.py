"""The endpoint's certificate, from its files."""

from __future__ import annotations

import ssl
from pathlib import Path

from scaler.errors import ConfigError


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server that has this certificate speaks TLS with. Raises ConfigError for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or "they are not such files"
        raise ConfigError(
            f"{certificate} and {key} cannot be used ({why}); expected a certificate in PEM, with those "
            "that it hangs on behind it, and its key, which no password protects"
        ) from error
    return context
