"""One answer over as many levels as it takes, standby levels, and what happens when no level comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest

from scaler.answering import Chunk, collect
from scaler.errors import LevelUnavailable, NeverAsked, RequestTimedOut
from scaler.events import AnswerHandedOver, StandbyLost
from scaler.handoff import LIMITS
from scaler.level_settings import EmbeddedLevel
from tests.effects.test_switching import Model, Stage, on_stage

TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "talk"}], "words": 4}
in_a_hurry = partial(on_stage, wait_s=0.05)
with_standby = partial(on_stage, standby=("small",))


async def begun(
    stage: Stage, level: str, words: int, *, streamed: bool = True, **options: Any
) -> asyncio.Task[tuple[str, dict[str, Any]]]:
    """An answer of four words of which ``level`` has said so many."""
    model = await stage.serve(level)
    answer = asyncio.create_task(stage.answer(4, streamed=streamed, **options))
    for _ in range(words):
        model.more.release()
    while not stage.switcher.answering or model.more._value:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    return answer


def said(chunks: list[Chunk]) -> str:
    """The text in an answer's chunks."""
    return "".join(data["choices"][0]["delta"].get("content", "") for _, data in chunks)


def let_speak(stage: Stage, level: str) -> None:
    """Let a level say all."""
    for _ in range(10):
        stage.runtime.models[level].more.release()


@on_stage
async def test_an_answer_whose_model_dies_is_finished_by_the_next_level(stage: Stage) -> None:
    """And the journal hears of it, with the reason."""
    answer = await begun(stage, "large", 2)
    stage.runtime.models["large"].die()
    await stage.told.until("died", "large")
    await stage.serve("small")
    let_speak(stage, "small")
    level, choice = await answer
    assert (level, choice["finish_reason"]) == ("small", "stop")
    assert choice["message"]["content"] == "large0 large1 small2 small3 "
    (over,) = [event for event in stage.events if isinstance(event, AnswerHandedOver)]
    assert (over.level, over.tokens, over.reason) == ("large", 2, "large: killed")


@in_a_hurry
async def test_an_answer_that_gave_way_and_finds_no_level_ends_shortened(stage: Stage) -> None:
    """What was said of it stands; the finish reason is that of a token limit."""
    answer = await begun(stage, "small", 2)
    await stage.told.until("switched", stage.ask("off", beside=False, drain_s=0.0))
    _, choice = await answer
    assert choice["message"]["content"] == "small0 small1 "
    assert choice["finish_reason"] == "length"


@in_a_hurry
async def test_an_answer_that_gave_way_to_a_level_that_is_gone_ends_shortened(stage: Stage) -> None:
    """No model died under it: what never took it up is no reason to tell the client of an error."""
    assert await given_way_to_one_that_is_gone(stage) == ("large0 large1 ", "length")


@in_a_hurry
async def test_an_answer_that_gave_way_to_a_level_whose_end_nobody_hears_of_ends_shortened(stage: Stage) -> None:
    """It is asked no more when the waiting is over, and what was said stands."""
    assert await given_way_to_one_that_is_gone(stage, heard_of=False) == ("large0 large1 ", "length")


async def given_way_to_one_that_is_gone(stage: Stage, *, heard_of: bool = True) -> tuple[str, str]:
    """What becomes of an answer whose next level ends before it took it up: the text, and the finish reason."""
    answer = await begun(stage, "large", 2)
    stage.runtime.busy = True
    # Beside it, so that the answer need not wait for its next level: what it may wait is over on a busy machine.
    await stage.told.until("switched", stage.ask("small", drain_s=0.0))
    small = stage.runtime.models["small"]
    if not heard_of:
        small.heard_of.clear()
    while not small.asked:
        await asyncio.sleep(0)
    small.die()
    _, choice = await answer
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize(
    ("streamed", "texts", "reasons"),
    [(True, ["large0", "large1"], ["stop", "length"]), (False, ["small0", "small1 small1"], ["stop", "stop"])],
)
def test_of_two_answers_of_which_one_has_ended_the_other_is_not_forgotten(
    streamed: bool, texts: list[str], reasons: list[str]
) -> None:
    """The level gives way between the two ends: a client that saw them gets an end of both, any other both whole."""

    async def two(model: Model, _: object) -> AsyncIterator[dict[str, Any]]:
        def chunk(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
            return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}

        yield chunk(0, f"{model.name}0")
        yield chunk(1, f"{model.name}1")
        yield chunk(0, "", "stop")
        await model.more.acquire()
        yield chunk(1, f" {model.name}1", "stop")

    @on_stage
    async def test(stage: Stage) -> None:
        with mock.patch.object(Model, "chat", two):
            await stage.serve("large")
            answer = asyncio.create_task(collect(stage.relay.answer({**TALK, "n": 2}, streamed=streamed)))
            for _ in range(50):
                await asyncio.sleep(0)
            await stage.told.until("switched", stage.ask("small", beside=False, drain_s=0.0))
            let_speak(stage, "small")
            _, whole = await answer
        assert [choice["message"]["content"] for choice in whole["choices"]] == texts
        assert [choice["finish_reason"] for choice in whole["choices"]] == reasons

    test()


@on_stage
async def test_an_answer_that_can_only_be_ended_is_not_told_to_go_on(stage: Stage) -> None:
    """Half of a JSON document was shown: the person who reads the journal looks for no level that has the rest."""
    answer = await begun(stage, "large", 2, response_format={"type": "json_object"})
    await stage.told.until("switched", stage.ask("small", beside=False, drain_s=0.0))
    level, choice = await answer
    assert (level, choice["finish_reason"]) == ("large", "length")
    assert not [event for event in stage.events if isinstance(event, AnswerHandedOver)]


@on_stage
async def test_a_request_that_was_let_in_is_not_turned_away_when_its_level_gives_way(stage: Stage) -> None:
    """It had said nothing yet, and meanwhile as many wait as may."""
    answer = await begun(stage, "large", 0)
    stage.runtime.gate.clear()
    stage.ask("small", beside=False)
    for _ in range(20):
        await asyncio.sleep(0)
    others = [asyncio.create_task(stage.answer(0)) for _ in range(2)]
    while stage.switcher.waiting < len(others):
        await asyncio.sleep(0)
    stage.hurry("small", 0.0, 0)
    while stage.switcher.waiting <= len(others) and not answer.done():
        await asyncio.sleep(0)
    stage.runtime.gate.set()
    await asyncio.gather(*others)
    let_speak(stage, "small")
    level, choice = await answer
    assert (level, choice["finish_reason"]) == ("small", "stop")


@on_stage
async def test_an_answer_whose_switch_is_overtaken_by_its_own_level_goes_on_there_without_a_limit(stage: Stage) -> None:
    """Else a call of a tool would be cut in the middle, by a level that stays."""
    answer = await begun(stage, "large", 1)
    stage.ask("small", beside=False, drain_s=1e6, drain_tokens=2)
    for _ in range(20):
        await asyncio.sleep(0)
    await stage.told.until("switched", stage.ask("large"))
    let_speak(stage, "large")
    level, choice = await answer
    assert (level, choice["message"]["content"]) == ("large", "large0 large1 large2 large3 ")
    assert stage.runtime.models["large"].closed_answers == 1
    assert not [event for event in stage.events if isinstance(event, AnswerHandedOver)]


@on_stage
async def test_a_limit_is_told_by_one_name(stage: Stage) -> None:
    """Of two, llama.cpp goes by the one of its own, whatever was left of the budget."""
    let_speak(stage, (await stage.serve("small")).name)
    await stage.answer(1, max_completion_tokens=7, n_predict=500)
    asked = stage.runtime.models["small"].asked
    assert {key: asked[key] for key in LIMITS if key in asked} == {"max_tokens": 7}


@on_stage
async def test_what_is_left_of_a_limit_is_never_below_what_the_answer_must_have(stage: Stage) -> None:
    """vLLM refuses that, and the answer would end in the middle for a request that was in order."""
    answer = await begun(stage, "large", 2, max_tokens=4, min_tokens=3)
    await stage.told.until("switched", stage.ask("small", beside=False, drain_s=0.0))
    let_speak(stage, "small")
    await answer
    assert [model.asked["min_tokens"] for model in stage.runtime.models.values()] == [3, 2]


def test_probabilities_of_a_completion_are_all_kept() -> None:
    """In OpenAI's older form they are lists beside each other."""

    async def parts() -> AsyncIterator[list[Chunk]]:
        for text in ("a", "b"):
            logprobs = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": None}
            yield [Chunk("small", {"choices": [{"index": 0, "text": text, "logprobs": logprobs}]})]

    _, whole = asyncio.run(collect(parts()))
    assert whole["choices"][0]["logprobs"] == {"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.5]}


@in_a_hurry
async def test_an_answer_whose_model_died_and_that_finds_no_level_is_an_error(stage: Stage) -> None:
    """It was not ended by anybody's will, and is not whole."""
    answer = await begun(stage, "small", 2)
    stage.runtime.models["small"].die()
    with pytest.raises(LevelUnavailable, match="killed"):
        await answer


@on_stage
async def test_an_answer_under_which_two_models_died_is_not_tried_on_a_third(stage: Stage) -> None:
    """It may be what kills them."""
    answer = await begun(stage, "large", 1)
    stage.runtime.models["large"].die()
    await stage.told.until("died", "large")
    await stage.serve("medium")
    while not stage.switcher.answering:
        await asyncio.sleep(0)
    stage.runtime.models["medium"].die()
    with pytest.raises(LevelUnavailable, match="medium: killed"):
        await answer


@in_a_hurry
async def test_a_level_that_was_asked_for_by_name_and_died_is_an_error(stage: Stage) -> None:
    """No other may go on with the answer, and that it has reached a limit would be a lie."""
    small = await stage.serve("small")
    answer = asyncio.create_task(collect(stage.relay.answer(TALK, level="small")))
    small.more.release()
    while not small.asked or small.more._value:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    small.die()
    with pytest.raises(LevelUnavailable, match="small: killed"):
        await answer


@on_stage
async def test_json_that_took_longer_than_a_request_may_wait_is_begun_anew(stage: Stage) -> None:
    """It was being answered all the time; the client, who saw nothing yet, gets it whole."""
    answer = await begun(stage, "small", 1, streamed=False, response_format={"type": "json_object"})
    stage.ahead_s = 60.0
    await stage.told.until("switched", stage.ask("large", beside=False, drain_s=0.0))
    let_speak(stage, "large")
    level, choice = await answer
    assert level == "large"
    assert choice["message"]["content"] == "large0 large1 large2 large3 "


@on_stage
async def test_waiting_for_its_turn_at_models_that_die_is_no_fault_of_a_request(stage: Stage) -> None:
    """It never reached any of them; else a crash would be an error for everybody who waits behind the culprit."""
    answer: asyncio.Task[tuple[str, dict[str, Any]]] | None = None
    stage.runtime.busy = True
    for level in ("large", "medium", "large"):
        model = await stage.serve(level)
        answer = answer or asyncio.create_task(stage.answer(4))
        while not stage.switcher.answering:
            await asyncio.sleep(0)
        # However long that lasts: what is bounded is the waiting for a level.
        stage.ahead_s += 60.0
        model.die()
        await stage.told.until("died", level)
    assert answer is not None
    stage.runtime.busy = False
    await stage.serve("small")
    let_speak(stage, "small")
    level, choice = await answer
    assert (level, choice["message"]["content"]) == ("small", "small0 small1 small2 small3 ")
    assert set(stage.scaler.status().performance) == {"small"}


@on_stage
async def test_a_client_that_takes_nothing_does_not_hold_the_switch_up(stage: Stage) -> None:
    """Its answer gives the model back when the limits are used up, and loses nothing of what was said."""
    small = await stage.serve("small")
    parts = stage.relay.answer(TALK)
    for _ in range(2):
        small.more.release()
    text = said(await anext(parts))
    await stage.told.until("switched", stage.ask("large", beside=False, drain_s=0.0))
    let_speak(stage, "large")
    async for chunks in parts:
        text += said(chunks)
    assert text in ("small0 small1 large2 large3 ", "small0 large1 large2 large3 ")


@with_standby
async def test_at_the_end_what_stands_by_takes_no_request_any_more(stage: Stage) -> None:
    """It is on its way out, and would be told that its model is gone."""
    await stage.serve("small")
    await stage.serve("large")
    stage.runtime.going.clear()
    closing = asyncio.create_task(stage.switcher.close())
    while "unload small" not in stage.runtime.log:
        await asyncio.sleep(0)
    try:
        with pytest.raises(RequestTimedOut, match="small did not serve"):
            await stage.switcher.lease(0.01, lambda: "it ends", level="small")
    finally:
        stage.runtime.going.set()
        await closing


@partial(on_stage, standby=("small", "medium"))
async def test_at_the_end_no_model_that_ends_has_died(stage: Stage) -> None:
    """Whoever stops a whole machine may end them all: nobody is to read of a death, and none is told to go twice."""
    await stage.serve("large")
    stage.runtime.going.clear()
    closing = asyncio.create_task(stage.switcher.close())
    while "unload small" not in stage.runtime.log:
        await asyncio.sleep(0)
    for name in ("medium", "large"):
        stage.runtime.models[name].die()
    for _ in range(20):
        await asyncio.sleep(0)
    stage.runtime.going.set()
    await closing
    assert stage.told.deaths == {}
    assert stage.runtime.log[-4:] == ["unload small", "unload medium", "unload large", "close"]


@with_standby
async def test_an_answer_on_what_stands_by_has_to_make_room_as_well(stage: Stage) -> None:
    """It began before the climb, and goes on there without a limit until everything has to go."""
    answer = await begun(stage, "small", 1)
    await stage.serve("large")
    assert (set(stage.switcher.loaded), stage.switcher.answering) == ({"small", "large"}, 1)
    ticket = stage.ask("off", beside=False, drain_s=0.0, drain_tokens=0)
    await stage.told.until("switched", ticket)
    assert stage.switcher.loaded == ()
    await stage.serve("medium")
    let_speak(stage, "medium")
    assert (await answer)[1]["message"]["content"] == "small0 medium1 medium2 medium3 "


@with_standby
async def test_stepping_down_to_a_level_that_stands_by_loads_nothing(stage: Stage) -> None:
    """New requests go to it at once, while the larger one drains."""
    await stage.serve("large")
    assert stage.runtime.log == ["load large", "load small"]
    let_speak(stage, "small")
    ticket = stage.ask("small", beside=False)
    await stage.told.until("switched", ticket)
    assert (await stage.answer(2))[0] == "small"
    assert stage.runtime.log == ["load large", "load small", "unload large"]


@with_standby
async def test_climbing_from_a_level_that_stands_by_keeps_it(stage: Stage) -> None:
    """It is below what serves, so it is worth its memory; above, or with nothing served, it is not."""
    await stage.serve("small")
    await stage.serve("medium")
    assert stage.runtime.log == ["load small", "load medium"]
    await stage.told.until("switched", stage.ask("off", beside=False))
    assert sorted(stage.runtime.log[2:]) == ["unload medium", "unload small"]


@with_standby
async def test_climbing_from_a_level_that_stands_by_waits_for_what_is_on_its_way_out(stage: Stage) -> None:
    """Else three models would be there at a time, of which room was found for two."""
    await stage.serve("medium")
    assert stage.runtime.log == ["load medium", "load small"]
    stage.runtime.going.clear()
    stage.ask("small", beside=False)
    while "unload medium" not in stage.runtime.log:
        await asyncio.sleep(0)
    ticket = stage.ask("large", beside=False)
    for _ in range(50):
        await asyncio.sleep(0)
    assert "load large" not in stage.runtime.log
    stage.runtime.going.set()
    await stage.told.until("switched", ticket)
    assert stage.runtime.log == ["load medium", "load small", "unload medium", "load large"]


@with_standby
async def test_a_standby_level_that_dies_is_told_and_what_serves_goes_on(stage: Stage) -> None:
    """Stepping down takes a load then."""
    await stage.serve("large")
    stage.runtime.models["small"].die()
    while StandbyLost("small", "small was killed") not in [told[0] for told in stage.told.log]:
        await asyncio.sleep(0)
    let_speak(stage, "large")
    assert (await stage.answer(1))[0] == "large"
    await stage.told.until("switched", stage.ask("small", beside=False))
    assert stage.runtime.log[-2:] == ["unload large", "load small"]


@with_standby
async def test_one_who_insists_on_the_level_that_stands_by_is_answered_by_it(stage: Stage) -> None:
    """And on one that is not loaded, waits in vain."""
    await stage.serve("large")
    let_speak(stage, "small")
    levels = {chunk.level async for chunks in stage.relay.answer(TALK, level="small") for chunk in chunks}
    assert levels == {"small"}
    with pytest.raises(RequestTimedOut, match="medium did not serve"):
        await stage.switcher.lease(0.01, lambda: "why", level="medium")


@with_standby
async def test_one_who_waits_for_a_level_is_answered_as_soon_as_it_stands_by(stage: Stage) -> None:
    """Not only when the next switch comes by, which may be never."""
    load, gate = stage.runtime.load, stage.runtime.gate

    async def one_by_one(settings: EmbeddedLevel, progress: Callable[[float], None]) -> Model:
        model = await load(settings, progress)
        gate.clear()
        return model

    with mock.patch.object(stage.runtime, "load", one_by_one):
        ticket = stage.ask("large")
        while "load small" not in stage.runtime.log:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(stage.switcher.lease(5.0, lambda: "why", level="small"))
        while not stage.switcher.waiting:
            await asyncio.sleep(0)
        gate.set()
        await stage.told.until("switched", ticket)
    assert (await waiting).level == "small"


@on_stage
async def test_tools_take_their_part_of_the_context_window(stage: Stage) -> None:
    """The oldest turns make room for them; else the runtime would refuse a conversation that could be answered."""
    small = await stage.serve("small")
    small.more.release()
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    async for _ in stage.relay.answer({"messages": turns, "words": 1, "tools": [4000]}):
        pass
    assert small.asked["messages"] == turns[-1:]


@on_stage
async def test_an_answer_that_nobody_wants_any_more_has_ended_when_it_is_closed(stage: Stage) -> None:
    """The model has its hands free at once, not when the memory is tidied up next."""
    small = await stage.serve("small")
    parts = stage.relay.answer(TALK)
    small.more.release()
    await anext(parts)
    await parts.aclose()
    assert (small.closed_answers, stage.switcher.answering) == (1, 0)


@on_stage
async def test_a_model_that_is_gone_is_not_asked_again_until_its_end_is_heard_of(stage: Stage) -> None:
    """Some servers are looked at once a second: until then a request would ask the same one without a pause."""
    answer = await begun(stage, "small", 2)
    small, asked = stage.runtime.models["small"], 0

    async def gone(request: object) -> AsyncIterator[dict[str, Any]]:
        nonlocal asked
        asked += 1
        raise NeverAsked("small: gone")
        yield {}

    with mock.patch.object(small, "chat", gone):
        small.heard_of.clear()
        small.die()
        for _ in range(200):
            await asyncio.sleep(0)
        assert asked == 1
        small.heard_of.set()
        await stage.told.until("died", "small")
    await stage.serve("large")
    let_speak(stage, "large")
    level, choice = await answer
    assert (level, choice["message"]["content"]) == ("large", "small0 small1 large2 large3 ")
    handed_over = [event for event in stage.events if isinstance(event, AnswerHandedOver)]
    assert [(event.level, event.tokens) for event in handed_over] == [("small", 2)]


@in_a_hurry
async def test_a_model_whose_end_nobody_hears_of_is_an_error_when_the_waiting_is_over(stage: Stage) -> None:
    """A request has an end, whatever a runtime makes of its model."""
    small = await stage.serve("small")

    async def gone(request: object) -> AsyncIterator[dict[str, Any]]:
        raise NeverAsked("small: gone")
        yield {}

    with mock.patch.object(small, "chat", gone), pytest.raises(LevelUnavailable, match="small: gone"):
        await stage.answer(4)
