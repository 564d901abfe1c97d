"""Folders that are their owner's alone, whatever the umask says."""

from __future__ import annotations

from pathlib import Path


def private_folder(folder: Path) -> None:
    """Make ``folder`` and those above it that lack, readable by their owner only. Raises OSError.

    Those that are there stay as they are: `Path.mkdir` alone would give the ones above it to everybody.
    """
    lacking = [folder, *folder.parents]
    for one in reversed([one for one in lacking if not one.exists()]):
        one.mkdir(mode=0o700, exist_ok=True)
    # Tells also when it is there and is no folder.
    folder.mkdir(exist_ok=True)
