"""Recordings of a machine's readings: compact local files, numbers only, that a replay reads back.

A recording is a folder of files, one for each stretch of recording: CSV inside gzip, readable with ``zcat``. Knows
readings and files; nothing of decisions.
"""

from __future__ import annotations

from scaler.recordings.recorder import Recorder
from scaler.recordings.recording import Recording

__all__ = ["Recorder", "Recording"]
