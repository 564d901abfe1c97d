"""The Responses API as programs use it: the official client, whole and streamed, and its helpers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from scaler.demo.models import COUNTS_TO
from tests.end_to_end.test_endpoint import client, post
from tests.end_to_end.test_ladder import COUNTED, settles_at

Running = Callable[..., Any]
SMALL_SAYS = " The small model speaks : I am made of random weights ."


class Choice(BaseModel):
    """What a model with random weights can be made to say by a grammar, since there is nothing to choose."""

    level: Literal["small"]


def test_the_official_client_gets_a_response_whole_and_streamed(serving: Running) -> None:
    """What people have works unchanged."""
    with serving(levels=["small"]) as (url, _, _), client(url) as talk:
        whole = talk.responses.create(model="auto", input="Who are you?", metadata={"a": "b"})
        Response.model_validate(whole.to_dict())
        assert whole.output_text == SMALL_SAYS
        assert (whole.status, whole.model, whole.metadata) == ("completed", "small", {"a": "b"})
        assert whole.usage is not None
        assert whole.usage.output_tokens == 13
        events = list(talk.responses.create(model="auto", input="Who are you?", stream=True))
        assert [event.type for event in events if event.type != "response.output_text.delta"] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == SMALL_SAYS
        assert events[-1].type == "response.completed"
        assert events[-1].response.usage is not None
        assert events[-1].response.usage.output_tokens == 13


def test_the_level_that_answers_stands_in_the_header_here_too(serving: Running) -> None:
    """As it does for chats."""
    with serving(levels=["small"]) as (url, _, _):
        status, _, headers = post(f"{url}/v1/responses", b'{"input": "Who are you?"}')
        assert (status, headers["x-scaler-level"]) == (200, "small")


def test_the_streaming_helper_works_blocking_and_not(serving: Running) -> None:
    """It adds the events up by itself, and refuses those that do not belong together."""
    with serving(levels=["small"]) as (url, _, _):
        with client(url) as talk, talk.responses.stream(model="auto", input="Who are you?") as stream:
            assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == SMALL_SAYS
            assert stream.get_final_response().output_text == SMALL_SAYS

        async def body() -> str:
            talk = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
            async with talk, talk.responses.stream(model="auto", input="Who are you?") as stream:
                async for _ in stream:
                    pass
                return (await stream.get_final_response()).output_text

        assert asyncio.run(body()) == SMALL_SAYS


def test_an_answer_of_a_given_form_is_parsed(serving: Running) -> None:
    """`text.format` is a grammar to the model."""
    with serving(levels=["small"]) as (url, _, _), client(url) as talk:
        parsed = talk.responses.parse(model="auto", input="Who are you?", text_format=Choice, max_output_tokens=100)
        assert parsed.output_parsed == Choice(level="small")
        with talk.responses.stream(
            model="auto", input="Who are you?", text_format=Choice, max_output_tokens=100
        ) as stream:
            assert stream.get_final_response().output_parsed == Choice(level="small")


def test_an_answer_that_reaches_its_limit_is_incomplete(serving: Running) -> None:
    """Agents ask for more then."""
    with serving(levels=["small"]) as (url, _, _), client(url) as talk:
        response = talk.responses.create(model="auto", input="Who are you?", max_output_tokens=3)
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output_text == " The small model"


def test_a_streamed_response_goes_on_unbroken_when_its_model_is_killed(serving: Running) -> None:
    """One response, one message in it, the whole count once, and the level that ended it."""
    with serving(policy={"max_level": "medium"}) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        pids = list(manager._switcher.pids())
        with client(url) as talk, talk.responses.stream(model="auto", input="Count to a thousand.") as stream:
            said = 0
            for event in stream:
                if event.type == "response.output_text.delta":
                    said += 1
                    while said > 30 and pids:
                        os.kill(pids.pop(), signal.SIGKILL)
            final = stream.get_final_response()
        assert not pids
        assert final.output_text == COUNTED
        assert [item.type for item in final.output] == ["message"]
        assert final.usage is not None
        assert final.usage.output_tokens == pytest.approx(COUNTS_TO + 2, abs=2)


def test_a_bad_request_for_a_response_gets_an_error_in_openais_form(serving: Running) -> None:
    """From whichever part finds it: the body, the translation, the list of models, the model."""
    with serving(levels=["small"]) as (url, _, _):
        for wrong, status, words in (
            ({}, 400, "'input' must be"),
            ({"input": "x", "previous_response_id": "resp_1"}, 400, "the whole conversation"),
            ({"input": "x", "model": "gpt-9"}, 404, "there are: auto, small"),
            ({"input": "x", "temperature": "hot"}, 400, "temperature"),
            ({"input": "x" * 30_000}, 400, "context"),
        ):
            for streamed in (False, True):
                body = json.dumps({**wrong, "stream": streamed}).encode()
                got, answer, _ = post(f"{url}/v1/responses", body)
                assert got == status, answer
                assert words in answer["error"]["message"]
