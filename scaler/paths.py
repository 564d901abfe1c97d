"""Where scaler's files are: what a person wrote, what scaler keeps, what it can make again, and what ships with it.

Owns the folders' places on each platform; knows nothing of what the files say, and creates none of them.
"""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path

from scaler.errors import ConfigError

_FOLDER = "scaler"


def config() -> Path:
    """The person's own configuration: ``scaler.yaml`` and ``tiers/``."""
    return _place("XDG_CONFIG_HOME", linux=".config", macos="Library/Application Support", windows="APPDATA")


def state() -> Path:
    """What is to outlive a restart: the journal, the recording."""
    return _place("XDG_STATE_HOME", linux=".local/state", macos="Library/Application Support", windows="LOCALAPPDATA")


def cache() -> Path:
    """What can be made again."""
    return _place("XDG_CACHE_HOME", linux=".cache", macos="Library/Caches", windows="LOCALAPPDATA")


def demo_models() -> Path:
    """The demo ladder's models."""
    return cache() / "demo-models"


def config_file() -> Path:
    """The person's configuration."""
    return config() / "scaler.yaml"


def tiers() -> Path:
    """The person's own tier files."""
    return config() / "tiers"


def shipped_config() -> Path:
    """The configuration that ships with scaler: ``scaler.yaml`` and ``tiers/``."""
    packaged = Path(str(resources.files(__package__) / "config"))
    # A wheel carries the folder inside the package. In a checkout, and so in an editable install, it lies beside it.
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "config"


def _home() -> Path:
    """The person's home. Raises ConfigError where nobody says which it is."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError("this user has no home directory; set the environment variable HOME to one") from error


def _place(variable: str, *, linux: str, macos: str, windows: str) -> Path:
    """scaler's folder in the place that ``variable`` or else the platform names.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/, which has relative values ignored.
    """
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():
        return named / _FOLDER
    if sys.platform == "win32":
        return Path(os.environ.get(windows) or _home() / "AppData" / "Local") / _FOLDER
    return _home() / (macos if sys.platform == "darwin" else linux) / _FOLDER
