"""Somebody with a stream open: has every answer count, over HTTP with OpenAI's own client, and looks at each number.

What a switch loses or says twice is a number that is missing or comes again. Knows nothing of levels but their names.
"""

from __future__ import annotations

import threading
from collections import Counter

import openai

from scaler.demo.models import COUNTS_TO, NUMBERS

PATIENCE_S = 60.0
"""A stream that says nothing for so long has failed."""


class Count(threading.Thread):
    """Asks for one count to a thousand after the other until told to stop; the last is let finish."""

    def __init__(self, url: str) -> None:
        """``url``: of scaler's endpoint, without a path."""
        super().__init__(name="demo-count")
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)
        self._enough = threading.Event()
        self.whole: Counter[str] = Counter()
        """How many counts were whole, by the levels that made each, such as ``large → medium``."""
        self.faults: list[str] = []
        """What was wrong with the others."""
        self.now = ""
        """The count that runs, in words."""

    def run(self) -> None:
        """Count until told to stop."""
        while not self._enough.is_set():
            try:
                self._count()
            except openai.OpenAIError as error:
                self.faults.append(f"the stream broke: {error}")
                self._enough.wait(1)
        self._client.close()

    def _count(self) -> None:
        stream = self._client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Count to a thousand."}], stream=True
        )
        text, levels = "", list[str]()
        for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            if not levels or levels[-1] != chunk.model:
                levels.append(chunk.model)
            self.now = f"{' → '.join(levels)}: … {text[-24:].strip()}"
        made = " → ".join(levels)
        if text.split() == [*NUMBERS, "."]:
            self.whole[made] += 1
        else:
            self.faults.append(f"{made}: not every number from 1 to {COUNTS_TO}, once each: …{text[-200:]!r}")

    def end(self) -> None:
        """Have the present count finish and begin no more; returns when it has."""
        self._enough.set()
        self.join()
