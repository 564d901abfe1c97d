"""Messages fitted to a level's context window, by the runtime's own count of tokens.

Knows nothing of levels beyond a number of tokens, and nothing of where the messages come from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from scaler.conversations.protocol import Message

TEMPLATE_TOKENS = 16
"""Room that a chat template takes for each message, at the most that we have seen of common ones."""


async def fit(
    messages: Sequence[Message],
    room_tokens: int,
    count: Callable[[Sequence[Message]], Awaitable[int]],
    *,
    besides: bool = False,
) -> list[Message]:
    """The messages that fit into ``room_tokens``: system prompt and latest turns first.

    Keeps leading system messages, and of the rest as much of its end as fits, but always the last message, with its
    question and, if it is a tool's result, with its call. The exact count is asked for only when the text could be too
    long, as a token stands for one byte at least, or when ``besides`` says that more than the messages is counted.
    """
    surely = not besides and sum(_most_tokens(message) for message in messages) <= room_tokens
    if surely or await count(messages) <= room_tokens:
        return list(messages)
    first = next((i for i, m in enumerate(messages) if m.get("role") not in ("system", "developer")), len(messages))
    head, cuts = list(messages[:first]), _cuts(messages[first:])
    # The longest that fits, by bisection: fewer messages are fewer tokens. The shortest is kept whatever it takes.
    low, high = 0, len(cuts) - 1
    while low < high:
        middle = (low + high) // 2
        if await count([*head, *cuts[middle]]) <= room_tokens:
            high = middle
        else:
            low = middle + 1
    return [*head, *cuts[low]]


def _cuts(turns: Sequence[Message]) -> list[Sequence[Message]]:
    """What may be left of the turns, the longest first, each a part of the one before.

    An answer does not lose its question, nor a tool's result its call: runtimes refuse such, or take it for nonsense.
    Where the last turn alone is too long, as with many calls in it, its oldest steps go before its question does.
    """
    # A step is a message with the results of the tools that it called.
    steps = [i for i, m in enumerate(turns) if i == 0 or m.get("role") != "tool"]
    questions = [i for i in steps if turns[i].get("role") == "user"]
    if not questions:
        return [turns[i:] for i in steps] or [()]
    asked = questions[-1]
    return [
        *(turns[i:] for i in questions),
        *([turns[asked], *turns[i:]] for i in steps if i > asked + 1),
    ]


def _most_tokens(message: Message) -> int:
    said = (str(value) for key, value in message.items() if key != "role" and value is not None)
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in said) + TEMPLATE_TOKENS
