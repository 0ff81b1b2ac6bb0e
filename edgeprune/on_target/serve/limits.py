"""What stands before the server: who may ask, how much, and how many may wait.

In: an ASGI application. Out: another one, which answers `/health` and `/metrics` itself, lets the
routes of OpenAI's API through and nothing else, refuses what is too large (413), has no key (401)
or finds the queue full (503), and tells the model when nobody listens any more. Runs on the target;
needs starlette, Python 3.9 and later.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from edgeprune.on_target.serve.meter import Meter
from edgeprune.on_target.serve.served import TICKET, Ticket

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REPLIES = ("/v1/completions", "/v1/chat/completions")
ROUTES = (*REPLIES, "/v1/models")
BODY_S = 30.0  # in which a request must have come


class TooLargeError(Exception):
    """A request's body is larger than what is read."""


class Limits:
    """The ASGI application in front of another one."""

    def __init__(
        self, app: App, meter: Meter, fault: Callable[[str, bytes], str | None], *, queue: int,
        time_limit_s: float, most_body_bytes: int, key: str | None,
    ) -> None:
        """Stand before `app`.

        Args:
            app: Answers requests for replies, one at a time.
            meter: Told what is answered.
            fault: Says what is wrong with a request for a reply, given its path and its body.
            queue: Requests that may wait for the one that is answered.
            time_limit_s: After which a reply ends.
            most_body_bytes: Of a request.
            key: What a client has to know; None lets everybody in.
        """
        self._app, self._meter, self._fault, self._key = app, meter, fault, key
        self._queue, self._time_limit_s = queue, time_limit_s
        self._most_body_bytes = most_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http":  # the server's own start and end
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in {*ROUTES, "/health", "/metrics"} else "other"

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._meter.answered(path, message["status"])
                # a connection that is kept could be used in the moment in which the server ends
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        answer = self._own_answer(scope, path)
        if answer is not None:
            await answer(scope, receive, sent)
        elif path in REPLIES:
            await self._reply(scope, receive, sent)
        else:
            await self._app(scope, receive, sent)

    def _own_answer(self, scope: Message, path: str) -> Response | None:
        """Return what needs no model: health, metrics, refusals."""
        if path == "/health":
            return JSONResponse(self._meter.health())
        if not self._may_ask(scope):
            return _refusal(401, "the API key is missing or wrong", "invalid_api_key")
        if path == "/metrics":
            return Response(self._meter.metrics(), media_type=CONTENT_TYPE_LATEST)
        if path == "other":
            return _refusal(404, f"there is no {scope['path']} here", "not_found")
        return None

    def _may_ask(self, scope: Message) -> bool:
        if self._key is None:
            return True
        told = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(told, b"Bearer " + self._key.encode())

    async def _reply(self, scope: Message, receive: Receive, send: Send) -> None:
        """Have a request answered by the model, when there is room for it."""
        try:
            body = await asyncio.wait_for(self._body(scope, receive), BODY_S)
        except TooLargeError:
            refusal = _refusal(413, f"a request may have {self._most_body_bytes} bytes",
                               "request_too_large")
            await refusal(scope, receive, send)
            return
        except asyncio.TimeoutError:
            await _refusal(408, "the request did not come", "timeout")(scope, receive, send)
            return
        if (fault := self._fault(scope["path"], body)) is not None:
            await _refusal(400, fault, "invalid_request")(scope, receive, send)
            return
        if self._meter.in_hand > self._queue:
            refusal = _refusal(503, f"{self._queue} requests are waiting already", "queue_full")
            refusal.headers["retry-after"] = "1"
            await refusal(scope, receive, send)
            return
        with self._meter.taking():
            ticket = Ticket(self._time_limit_s)
            async with _listened(ticket, body, receive) as again:
                await _ask(self._app, ticket, scope, again, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self._most_body_bytes:
            raise TooLargeError
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most_body_bytes:
                raise TooLargeError
        return bytes(body)


@asynccontextmanager
async def _listened(ticket: Ticket, body: bytes, receive: Receive) -> AsyncIterator[Receive]:
    """Give an application a request's body, and mark its ticket when the client goes away."""
    gone, is_given = asyncio.Event(), False

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ticket.is_gone = True
        gone.set()

    async def again() -> Message:
        nonlocal is_given
        if not is_given:
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    TICKET.set(ticket)
    watcher = asyncio.create_task(watch())
    try:
        yield again
    finally:
        watcher.cancel()


async def _ask(app: App, ticket: Ticket, scope: Message, receive: Receive, send: Send) -> None:
    """Call the application; what the model refuses before a stream's first event is no 200.

    The server says 200 before the model has looked at the prompt, which may be too long for it.
    """
    held: list[Message] = []

    async def after_the_first(message: Message) -> None:
        is_empty = message["type"] == "http.response.body" and not message.get("body")
        if message["type"] == "http.response.start" or (held and is_empty):
            held.append(message)
            return
        await let_go()
        await send(message)

    async def let_go() -> None:
        for message in held:
            await send(message)
        held.clear()

    try:
        await app(scope, receive, after_the_first)
    finally:
        if held and ticket.refusal is not None:
            await _refusal(400, ticket.refusal, "invalid_request")(scope, receive, send)
        else:
            await let_go()


def _refusal(status: int, message: str, code: str) -> JSONResponse:
    """Return an error as OpenAI's API tells it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}},
                        status)
