"""OpenAI's Responses API: a chat in another form, so that a switch in the middle of it goes as unseen as in a chat.

Owns how an answer's chunks become a response object and its events; whole or streamed, they are made by the same
steps. What a request means as a chat is `responses_request`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from scaler.answering import Chunk
from scaler.errors import RequestRejected, ScalerError
from scaler.serving.answers import MODEL, Answers, refuse
from scaler.serving.errors import body_of
from scaler.serving.openai import checked
from scaler.serving.responses_request import chat_request

_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "user": None,
}
"""What the response repeats of its request, and what stands there when the request did not say."""


class Responses:
    """The handler of ``POST /v1/responses``."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def routes(self) -> list[web.RouteDef]:
        """Where it is found."""
        return [web.post("/v1/responses", self.create)]

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Answer, whole or as server-sent events."""
        try:
            body = checked(await request.read())
            level = self._answers.level(body.pop("model", MODEL))
            chat = chat_request(body)
        except RequestRejected as error:
            return refuse(error, body_of(error))
        form = ResponseForm(body, uuid.uuid4().hex, time.time)
        return await self._answers.answer(request, chat, level, form, streamed=bool(body.get("stream")))


class ResponseForm:
    """One answer as a response object and its events."""

    content_type = "text/event-stream"

    def __init__(self, asked: Mapping[str, Any], identity: str, clock: Callable[[], float]) -> None:
        """``asked``: the request; ``identity`` makes its ids; ``clock``: seconds since the epoch."""
        echoed = {key: asked[key] if asked.get(key) is not None else usual for key, usual in _ECHOED.items()}
        self._identity, self._clock = identity, clock
        self._response: dict[str, Any] = {
            "id": f"resp_{identity}",
            "object": "response",
            "created_at": int(clock()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": "",
            "output": [],
            "previous_response_id": None,
            "store": False,
            # The oldest turns are left out of what is longer than the context window.
            "truncation": "auto",
            "usage": None,
            **echoed,
        }
        self._events: list[bytes] = []
        self._number = 0
        self._open: _Item | None = None
        self._thought = self._said = 0
        self._finish: str | None = None
        self._usage: Mapping[str, Any] | None = None

    # ---------------------------------------------------------------- the form

    def piece(self, chunk: Chunk) -> bytes:
        self._take(chunk)
        return self._told()

    def end(self) -> bytes:
        self._finished()
        return self._told()

    def broken(self, error: ScalerError) -> bytes:
        code = "invalid_prompt" if isinstance(error, RequestRejected) else "server_error"
        self._close("incomplete")
        self._response |= {"status": "failed", "error": {"code": code, "message": str(error)}}
        self._tell("response.failed", response=self._response)
        return self._told()

    def whole(self, answer: Chunk) -> dict[str, Any]:
        level, data = answer
        # As a stream of one chunk: the message has the form of what is added to it.
        choices = [{**choice, "delta": choice["message"]} for choice in data["choices"]]
        self._take(Chunk(level, {**data, "choices": choices}))
        self._finished()
        return self._response

    def refusal(self, error: ScalerError) -> dict[str, Any]:
        return body_of(error)

    # ---------------------------------------------------------------- the steps

    def _take(self, chunk: Chunk) -> None:
        response = self._response
        response["model"] = chunk.level
        if not self._number:
            self._tell("response.created", response=response)
            self._tell("response.in_progress", response=response)
        self._usage = chunk.data.get("usage") or self._usage
        for choice in chunk.data.get("choices", ()):
            if choice.get("index", 0):
                continue
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                self._thought += len(thought)
                self._item("reasoning", _Reasoning).add(thought)
            if text := delta.get("content"):
                self._said += len(text)
                self._item("message", _Message).add(text)
            for position, call in enumerate(delta.get("tool_calls") or ()):
                self._add_call(call.get("index", position), call)
            self._finish = choice.get("finish_reason") or self._finish

    def _add_call(self, index: int, call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        identity = call.get("id") or f"call_{self._identity}_{index}"
        item = self._item(f"call {index}", _Call, call_id=identity, name=function.get("name"))
        if arguments := function.get("arguments"):
            self._said += len(arguments)
            item.add(arguments)

    def _item(self, key: str, kind: type[_Item], **details: Any) -> _Item:
        """The item that grows, a new one where ``key`` is another than before."""
        if self._open is None or self._open.key != key:
            self._close("completed")
            position = len(self._response["output"])
            self._open = kind(key, position, f"{kind.prefix}_{self._identity}_{position}", self._tell, details)
            self._response["output"].append(self._open.item)
            self._open.begin()
        return self._open

    def _close(self, status: str) -> None:
        if self._open is not None:
            self._open.end(status)
            self._open = None

    def _finished(self) -> None:
        cut = self._finish == "length"
        status = "incomplete" if cut else "completed"
        self._close(status)
        response = self._response
        response["status"] = status
        if cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(self._clock())
        response["usage"] = self._usage_of(self._usage)
        self._tell(f"response.{status}", response=response)

    def _usage_of(self, usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The usage in this API's words.

        llama.cpp does not count the tokens of thinking apart: they are estimated by its share of the characters.
        """
        if usage is None:
            return None
        made, told = usage.get("completion_tokens", 0), self._thought + self._said
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return {
            "input_tokens": usage.get("prompt_tokens", 0),
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": round(made * self._thought / told) if told else 0},
            "total_tokens": usage.get("total_tokens", 0),
        }

    def _tell(self, kind: str, **what: Any) -> None:
        data = {"type": kind, "sequence_number": self._number, **what}
        # Written at once: what it tells of grows further.
        self._events.append(b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n")
        self._number += 1

    def _told(self) -> bytes:
        told = b"".join(self._events)
        self._events.clear()
        return told


class _Item:
    """One item of the output while it grows."""

    prefix = ""

    def __init__(self, key: str, position: int, identity: str, tell: Callable[..., None], details: Any) -> None:
        self.key, self._tell, self._text = key, tell, [""]
        self._where = {"item_id": identity, "output_index": position}
        self._position = position
        self.item: dict[str, Any] = {"id": identity, "status": "in_progress", **self._begun(details)}

    def _begun(self, details: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of it before it grows."""
        raise NotImplementedError

    def begin(self) -> None:
        """Tell that there is one."""
        self._tell("response.output_item.added", output_index=self._position, item=self.item)

    def add(self, text: str) -> None:
        """Take in more of it, and tell."""
        raise NotImplementedError

    def end(self, status: str) -> None:
        """Tell it whole."""
        self.item["status"] = status
        self._tell("response.output_item.done", output_index=self._position, item=self.item)


class _Call(_Item):
    """A call of a function."""

    prefix = "fc"

    def _begun(self, details: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "type": "function_call",
            "call_id": details["call_id"],
            "name": details["name"] or "",
            "arguments": "",
        }

    def add(self, text: str) -> None:
        self._text.append(text)
        self._tell("response.function_call_arguments.delta", **self._where, delta=text)

    def end(self, status: str) -> None:
        arguments = self.item["arguments"] = "".join(self._text)
        self._tell("response.function_call_arguments.done", **self._where, name=self.item["name"], arguments=arguments)
        super().end(status)


class _Part(_Item):
    """An item with one part, which is a text."""

    event = ""

    def _part(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _more(self) -> dict[str, Any]:
        return {}

    def begin(self) -> None:
        super().begin()
        self._where["content_index"] = 0
        self._tell("response.content_part.added", **self._where, part=self._part(""))

    def add(self, text: str) -> None:
        self._text.append(text)
        self._tell(f"response.{self.event}.delta", **self._where, delta=text, **self._more())

    def end(self, status: str) -> None:
        text = "".join(self._text)
        self._tell(f"response.{self.event}.done", **self._where, text=text, **self._more())
        part = self._part(text)
        self._tell("response.content_part.done", **self._where, part=part)
        self.item["content"] = [part]
        super().end(status)


class _Message(_Part):
    """What was said."""

    prefix, event = "msg", "output_text"

    def _begun(self, details: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "message", "role": "assistant", "content": []}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _more(self) -> dict[str, Any]:
        return {"logprobs": []}


class _Reasoning(_Part):
    """What was thought before."""

    prefix, event = "rs", "reasoning_text"

    def _begun(self, details: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "reasoning", "summary": [], "content": []}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}
