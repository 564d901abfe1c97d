"""The one family of errors that scaler raises.

Every message says what happened, where, and what to do. Nothing here imports anything of scaler.
"""


class ScalerError(Exception):
    """Any failure that scaler reports; catch this to catch them all."""

    def __str__(self) -> str:
        # It may name a file whose name is no text, and the JSON in which a client is told of it can hold nothing else.
        return super().__str__().encode(errors="backslashreplace").decode()


class ConfigError(ScalerError):
    """A configuration that cannot be used: names the file, the line, the key and what was expected."""


class LevelUnavailable(ScalerError):
    """A level could not be loaded or stopped serving: names the level, the file and the cause."""


class NeverAsked(LevelUnavailable):
    """A level was gone before a request that waited its turn had reached it: the request cannot be to blame."""


class RequestTimedOut(ScalerError):
    """A request waited longer for a level to serve it than the configuration allows."""


class QueueFull(ScalerError):
    """More requests wait for a level than the configuration allows."""


class PinRefused(ScalerError):
    """A level cannot be pinned: it would not fit under critical-at, is not allowed, or is unknown."""


class SensorFailed(ScalerError):
    """A sensor could not read what the machine has: names the file or call and what was wrong with its answer."""


class MissingExtra(ScalerError):
    """An optional part is not installed: names the extra that brings it."""


class ConversationError(ScalerError):
    """A conversation cannot be read or kept: names the file, the cause and what to do."""


class RecordingError(ScalerError):
    """A recording of readings cannot be written or read: names the file, the line and what was expected."""


class DaemonUnreachable(ScalerError):
    """No scaler daemon answers at the given address."""


class RequestRejected(ScalerError):
    """A runtime refused a request for a fault of its own; carries the HTTP status and OpenAI's error body."""

    def __init__(self, message: str, status: int = 400, body: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
