"""Somebody with a stream open: has every answer count, over HTTP with OpenAI's own client, and looks at each number.

What a switch loses or says twice is a number that is missing or comes again. Knows nothing of levels but their names.
"""

from __future__ import annotations

import threading
from collections import Counter

import openai

from scaler.demo.models import COUNTS_TO, NUMBERS

COUNTED = " ".join([*NUMBERS, "."])
"""A whole count."""

PATIENCE_S = 60.0
"""A stream that says nothing for so long has failed."""


class Count(threading.Thread):
    """Asks for one count to a thousand after the other until told to stop."""

    def __init__(self, url: str) -> None:
        """``url``: of scaler's endpoint, without a path."""
        super().__init__(name="demo-count")
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)
        self._enough = threading.Event()
        self._given_up = threading.Event()
        self.whole: Counter[str] = Counter()
        """How many counts were whole, by the levels that made each, such as ``large → medium``."""
        self.faults: list[str] = []
        """What was wrong with the others."""
        self.shortened = 0
        """How many were right as far as they went and said that they were cut: begun while their level had to go."""
        self.broken_off = ""
        """The count that nobody waited for, in words: it was right as far as it went. Empty if there was none."""
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
        text, levels, cut = "", list[str](), False
        for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            cut = cut or any(choice.finish_reason == "length" for choice in chunk.choices)
            if not levels or levels[-1] != chunk.model:
                levels.append(chunk.model)
            self.now = f"{' → '.join(levels)}: … {text[-24:].strip()}"
            if self._given_up.is_set():
                stream.close()
                break
        made = " → ".join(levels)
        said = " ".join(text.split())
        if said == COUNTED:
            self.whole[made] += 1
        elif cut and COUNTED.startswith(said):
            self.shortened += 1
        elif self._given_up.is_set() and COUNTED.startswith(said):
            self.broken_off = f"{made}, right up to {said.split()[-1] if said else 0}"
        else:
            self.faults.append(f"{made}: not every number from 1 to {COUNTS_TO}, once each: …{text[-200:]!r}")

    def last(self) -> None:
        """Have the present count finish and begin no more; returns at once."""
        self._enough.set()

    def end(self) -> None:
        """Have the present count finish and begin no more; returns when it has."""
        self.last()
        self.join()

    def break_off(self) -> None:
        """Have the present count end at its next word and begin no more; returns when it has."""
        self._given_up.set()
        self.end()
