"""The endpoint's description of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast
from urllib.request import urlopen

import pytest
from aiohttp import web

from scaler.serving.openapi import PATH, description


@pytest.mark.parametrize("token", [True, False])
def test_it_says_whether_a_token_is_needed(token: bool) -> None:
    """So that a program made of it asks for one."""
    told = description(token=token)
    assert ("security" in told) is token
    json.dumps(told)


def test_it_has_every_route_and_no_other(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds a route describes it."""
    made: list[web.Application] = []
    begin = web.AppRunner.__init__

    def keep(runner: web.AppRunner, app: web.Application, **options: Any) -> None:
        made.append(app)
        cast(Any, begin)(runner, app, **options)

    monkeypatch.setattr(web.AppRunner, "__init__", keep)
    with serving(levels=("small",)) as (url, _, _), urlopen(f"{url}{PATH}", timeout=30) as response:
        told = json.load(response)
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in made[0].router.routes()
        if route.resource is not None
    }
    described = {(method, path) for path, methods in told["paths"].items() for method in methods}
    # A HEAD goes with each GET.
    heads = {("head", path) for method, path in routes if method == "get"}
    assert described - heads == routes - heads
