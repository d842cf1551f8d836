"""A server of the automation API's shapes (docs/api.md) that answers what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from aiohttp import web

from cli.pki import CertificateFiles


@attrs.define
class Reply:
    """One answer; `then_hang` keeps an event stream open, `drop` closes without an answer."""

    body: Any
    status: int = 200
    events: list[tuple[str, Any]] | None = None
    then_hang: bool = False
    drop: bool = False


@attrs.define
class FakeApi:
    """Replies per `METHOD path`; the last reply of a list is repeated. Keeps what it was asked."""

    replies: dict[str, list[Reply]] = attrs.field(factory=dict)
    queries: list[dict[str, str]] = attrs.field(factory=list)
    requests: list[tuple[str, str, Any]] = attrs.field(factory=list)
    url: str = ""

    def on(self, route: str, *replies: Reply | Mapping[str, Any]) -> None:
        self.replies[route] = [r if isinstance(r, Reply) else Reply(dict(r)) for r in replies]

    def asked(self, route: str) -> list[Any]:
        method, path = route.split(" ")
        return [body for m, p, body in self.requests if (m, p) == (method, path)]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.requests.append((request.method, request.path, json.loads(text) if text else None))
        self.queries.append(dict(request.query))
        replies = self.replies.get(f"{request.method} {request.path}")
        if not replies:
            return problem("not_found", 404, 3, f"no route {request.path}")
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply.drop:
            assert request.transport is not None
            request.transport.abort()
            await asyncio.sleep(60)
        if reply.events is not None:
            return await self._stream(request, reply)
        kind = "application/problem+json" if reply.status >= 400 else "application/json"
        return web.json_response(reply.body, status=reply.status, content_type=kind)

    async def _stream(self, request: web.Request, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": keep-alive\n\n")
        for number, (event, body) in enumerate(reply.events or (), start=1):
            text = f"id: {number}\nevent: {event}\ndata: {json.dumps(body)}\n\n"
            await response.write(text.encode())
        if reply.then_hang:
            await asyncio.sleep(60)
        return response


def problem(code: str, status: int, exit_code: int, detail: str) -> web.Response:
    return web.json_response(
        problem_body(code, status, exit_code, detail),
        status=status,
        content_type="application/problem+json",
    )


def problem_body(
    code: str, status: int, exit_code: int, detail: str, **more: Any
) -> dict[str, Any]:
    return {"code": code, "status": status, "exit_code": exit_code, "detail": detail, **more}


def refusal(code: str, status: int, exit_code: int, detail: str, **more: Any) -> Reply:
    return Reply(problem_body(code, status, exit_code, detail, **more), status=status)


@contextmanager
def served(files: CertificateFiles) -> Iterator[FakeApi]:
    """Serve a fake API with mutual TLS from a thread of its own."""
    api = FakeApi()
    loop = asyncio.new_event_loop()
    runner = loop.run_until_complete(_start(api, files))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _start(api: FakeApi, files: CertificateFiles) -> web.AppRunner:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files.ca))
    context.load_cert_chain(str(files.cert), str(files.key))
    context.verify_mode = ssl.CERT_REQUIRED
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    api.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    return runner
