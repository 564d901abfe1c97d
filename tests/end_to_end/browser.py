"""A real Chromium without a window, for the tests of the page and for its pictures.

Driven by Playwright, which waits for what is looked for instead of sleeping, and tells of every request and of every
word on the console. It brings no browser here: the system's is started, and nothing is downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, sync_playwright

from tests.end_to_end.conftest import PATIENCE_S

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
"""Where it is; None where there is none."""
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium(
    profile: Path, *, width: int = 1280, height: int = 900, dark: bool = False, zone: str | None = None
) -> Iterator[BrowserContext]:
    """One with a fresh profile in an empty folder, in the machine's time zone if none is named."""
    assert CHROMIUM is not None
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            timezone_id=zone,
            timeout=PATIENCE_S * 1000,
        )
        context.set_default_timeout(PATIENCE_S * 1000)
        try:
            yield context
        finally:
            context.close()
