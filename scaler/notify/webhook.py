"""The webhook: each notice is posted as JSON to a URL of the person's.

Owns the request and when it is tried again. Messages name the host only: the rest of such a URL is often a secret.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scaler import extras
from scaler.notices import Notice

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_WAIT_S = 1.0
"""The wait before the second attempt; it doubles with each, and up to half of it is taken off or added by chance."""
TIMEOUT_S = 10.0
"""For so many seconds one attempt may take."""


class Webhook:
    """Posts to ``url``; network errors, 5xx and 429 are tried again, what else is refused is not."""

    def __init__(
        self,
        url: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``sleep`` waits so many seconds, ``chance`` is 0..1. Raises MissingExtra without an HTTP client."""
        extras.require("server", "aiohttp")
        self.name = f"webhook {urlsplit(url).hostname}"
        self._url, self._sleep, self._chance = url, sleep, chance
        self._session: aiohttp.ClientSession | None = None

    async def deliver(self, notice: Notice) -> None:
        """Post ``notice``, a few times if need be; logs it when that was in vain."""
        wait_s = FIRST_WAIT_S
        for attempt in range(1, ATTEMPTS + 1):
            fault, passing = await self._post(notice)
            if fault is None:
                return
            if not passing or attempt == ATTEMPTS:
                break
            await self._sleep(wait_s * (0.5 + self._chance()))
            wait_s *= 2
        log.warning("%s: not told after %d attempts, %s: %s", self.name, attempt, fault, notice.text)

    async def _post(self, notice: Notice) -> tuple[str | None, bool]:
        """What went wrong, if anything, and whether it may go right another time."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        try:
            # Where it is redirected to it would be a GET, which tells nobody anything.
            async with self._session.post(self._url, json=asdict(notice), allow_redirects=False) as answer:
                if 200 <= answer.status < 300:
                    return None, False
                passing = answer.status >= 500 or answer.status == HTTPStatus.TOO_MANY_REQUESTS
                return f"the answer was {answer.status} {answer.reason}", passing
        except ValueError:
            # Before it is even asked for: aiohttp's InvalidURL, or a UnicodeError for a host that no name server knows.
            return "the URL cannot be used", False
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}".removesuffix(": "), True

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
