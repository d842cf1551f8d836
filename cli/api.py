"""The client of the automation API: mutual TLS, several addresses, errors that say what to do.

Every request of this API may be repeated (`PUT` is idempotent, failovers carry a request id), so a
request goes to the next address when one does not answer. Only when none did, and one of them may
have received a change, is the outcome unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import attrs

from cli.server_events import ServerEvent, parse_events
from cli.settings import ContextConfig
from meshkit import errors
from meshkit.errors import InvalidConfig, MeshError, NotAllowed, OutcomeUnknown, Unreachable

CONNECT_TIMEOUT_MS = 3_000
"""Until TLS is spoken: a process that is stopped still lets its system accept connections."""
_EVENT_SILENCE_MS = 25_000
"""The API sends a comment every 10 s; a connection silent for longer is dead."""
_RETRY_PAUSE_MS = 300
_CERTIFICATE_EXPIRED = 10
_UNKNOWN_ISSUER = (18, 19, 20, 21)
_WRONG_HOST = (62, 64)
_HINTS = {
    "unreachable": "check the members of the coordination etcd and their quorum",
    "outcome_unknown": "read the state back (mesh failovers list, mesh groups list) first",
}
"""For problems that come without one."""
_BY_CODE: Mapping[str, type[MeshError]] = {
    cls.code: cls
    for cls in (
        errors.Refused,
        errors.Conflict,
        errors.RevisionConflict,
        errors.InvalidInput,
        errors.NotAllowed,
        errors.NotFound,
        errors.OutcomeUnknown,
        errors.Unreachable,
    )
}


_NOTHING_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""With these no TLS connection was there, so that nothing can have been received."""


@attrs.frozen(kw_only=True)
class Answer:
    """What the API said: an HTTP status below 400 and a JSON body."""

    status: int
    body: dict[str, Any]


@attrs.define
class Turn:
    """Which address is asked first: past one that did not answer, for as long as this lives."""

    number: int = 0


class MeshApi:
    """A session with the automation API. Use as an async context manager.

    Raises from every call: a child of `MeshError` made from the problem the API reported;
    `Unreachable` when no address answered; `OutcomeUnknown` when a change may have been received;
    `NotAllowed` when our certificate was not accepted.
    """

    def __init__(
        self, context: ContextConfig, *, timeout_ms: int, turn: Turn | None = None
    ) -> None:
        self._context = context
        self._timeout_ms = timeout_ms
        self._ssl = client_ssl_context(context)
        self._turn = turn or Turn()
        self._greeted: set[str] = set()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session; nothing is connected yet."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._ssl),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_MS / 1000),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Return what is at `path`."""
        return (await self._request("GET", path, query=query)).body

    async def put(self, path: str, body: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """Store `body` at `path`; the same twice changes nothing. Or only have it checked."""
        query = {"dry_run": "true"} if dry_run else {}
        return (
            await self._request("PUT", path, body=body, query=query, is_change=not dry_run)
        ).body

    async def post(self, path: str, body: Mapping[str, Any], *, is_change: bool = True) -> Answer:
        """Ask for an act; without `is_change` only for what it would do."""
        return await self._request("POST", path, body=body, is_change=is_change)

    async def events(
        self, failover_id: str, *, after: str = ""
    ) -> AsyncGenerator[ServerEvent, None]:
        """Yield a failover's transitions, past ones first, over any number of lost connections.

        Ends after the event `end`. The caller limits how long it wants to listen.
        """
        last = after
        tries_without_event = 0
        while True:
            try:
                async with contextlib.aclosing(self._events_once(failover_id, last)) as events:
                    async for event in events:
                        tries_without_event = 0
                        last = event.event_id or last
                        yield event
                        if event.event == "end":
                            return
            except Unreachable:
                tries_without_event += 1
                if tries_without_event > 3 * len(self._context.api):
                    raise
            self._turn.number += 1
            await asyncio.sleep(_RETRY_PAUSE_MS / 1000)

    async def _events_once(self, failover_id: str, last: str) -> AsyncGenerator[ServerEvent, None]:
        assert self._session is not None, "used outside of `async with`"
        url = self._addresses()[0]
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        timeout = aiohttp.ClientTimeout(
            connect=CONNECT_TIMEOUT_MS / 1000, sock_read=_EVENT_SILENCE_MS / 1000
        )
        try:
            async with self._session.get(
                f"{url}/v1/failovers/{failover_id}/events", headers=headers, timeout=timeout
            ) as answer:
                if answer.status >= 400:
                    raise await _problem(answer)
                async for event in parse_events(answer.content):
                    yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise connection_error(error, url, self._context) from error

    def _addresses(self) -> list[str]:
        api = self._context.api
        start = self._turn.number % len(api)
        return [*api[start:], *api[:start]]

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        is_change: bool = False,
    ) -> Answer:
        failures: list[MeshError] = []
        maybe_received = False
        for url in self._addresses():
            is_sent = False
            try:
                if is_change:
                    await self._greet(url)
                is_sent = is_change
                return await self._once(method, f"{url}{path}", body=body, query=query or {})
            except Unreachable as error:
                failures.append(error)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                maybe_received |= is_sent and not isinstance(error, _NOTHING_SENT)
                failures.append(connection_error(error, url, self._context))
            self._turn.number += 1
        raise _worst(failures, maybe_received=maybe_received)

    async def _greet(self, url: str) -> None:
        """Read before the first change, which must not be in doubt because of our certificate.

        With TLS 1.3 a server that does not accept it hangs up only after we have sent.
        """
        assert self._session is not None, "used outside of `async with`"
        if url in self._greeted:
            return
        async with (
            asyncio.timeout(self._timeout_ms / 1000),
            self._session.get(f"{url}/livez") as answer,
        ):
            await answer.read()
        self._greeted.add(url)

    async def _once(
        self, method: str, url: str, *, body: Mapping[str, Any] | None, query: Mapping[str, str]
    ) -> Answer:
        assert self._session is not None, "used outside of `async with`"
        async with (
            asyncio.timeout(self._timeout_ms / 1000),
            self._session.request(method, url, json=body, params=query) as answer,
        ):
            if answer.status >= 400:
                raise await _problem(answer)
            return Answer(status=answer.status, body=await _body(answer))


def client_ssl_context(context: ContextConfig) -> ssl.SSLContext:
    """Return the TLS settings of a client with our certificate.

    Raises:
        InvalidConfig: a file is not a certificate or key, or they do not belong together.
    """
    try:
        ssl_context = ssl.create_default_context(cafile=str(context.ca))
    except (ssl.SSLError, OSError) as error:
        raise InvalidConfig(f"{context.ca} is not a CA certificate: {error}") from error
    ssl_context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        ssl_context.load_cert_chain(str(context.cert), str(context.key))
    except (ssl.SSLError, OSError) as error:
        raise InvalidConfig(
            f"{context.cert} and {context.key} are not a certificate and its key: {error}"
        ) from error
    return ssl_context


def connection_error(error: Exception, url: str, context: ContextConfig) -> MeshError:
    """Return what a failed connection means for the operator."""
    verification = _cause(error, ssl.SSLCertVerificationError)
    if isinstance(verification, ssl.SSLCertVerificationError):
        return _untrusted_server(verification, url, context)
    own = None if _never_connected(error) else _own_certificate_problem(context)
    if own is not None:
        return NotAllowed(
            f"{url} did not accept our certificate: {own}",
            hint="issue a new certificate, or name another with --cert and --key",
        )
    tls = _cause(error, ssl.SSLError)
    if tls is not None:
        reason = str(getattr(tls, "reason", "") or tls).replace("_", " ").lower()
        return NotAllowed(
            f"{url} did not accept our certificate {context.cert} ({reason})",
            hint="check that the certificate was issued by the mesh's CA",
        )
    words = "no answer in time" if isinstance(error, TimeoutError) else _words(error)
    return Unreachable(
        f"cannot reach the automation API at {url}: {words}",
        hint="is a coordinator running there? Other addresses: --api or MESH_API",
    )


def _untrusted_server(
    error: ssl.SSLCertVerificationError, url: str, context: ContextConfig
) -> MeshError:
    if error.verify_code == _CERTIFICATE_EXPIRED:
        return Unreachable(
            f"the certificate of the automation API at {url} has expired",
            hint="renew the coordinator's certificate; nothing was sent",
        )
    if error.verify_code in _UNKNOWN_ISSUER:
        return Unreachable(
            f"the certificate of the automation API at {url} is from an unknown CA,"
            f" not from {context.ca}",
            hint="name the mesh's CA with --ca or MESH_CA; nothing was sent",
        )
    if error.verify_code in _WRONG_HOST:
        return Unreachable(
            f"the certificate of the automation API at {url} is for another host:"
            f" {error.verify_message}",
            hint="use the host name that the certificate is for; nothing was sent",
        )
    return Unreachable(
        f"the certificate of the automation API at {url} is not valid: {error.verify_message}",
        hint="nothing was sent",
    )


def _never_connected(error: Exception) -> bool:
    """Return whether no TLS was spoken at all, so that certificates cannot be the reason."""
    kinds = (ConnectionRefusedError, socket.gaierror)
    return isinstance(error, TimeoutError) or any(_cause(error, kind) for kind in kinds)


def _own_certificate_problem(context: ContextConfig) -> str | None:
    """Look for the reason why a server hung up on us: with TLS 1.3 it often does so silently."""
    from cli.pki import expired_at, is_issued_by

    ended = expired_at(context.cert)
    if ended is not None:
        return f"{context.cert} expired at {ended}"
    if not is_issued_by(context.cert, context.ca):
        return f"{context.cert} was not issued by the CA in {context.ca}"
    return None


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None:
        if isinstance(error, kind) and not isinstance(error, aiohttp.ClientError):
            return error
        inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
        error = inner or error.__cause__ or error.__context__
    return None


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if cause.errno and not isinstance(cause, socket.gaierror):
            return os.strerror(cause.errno).lower()
        return (cause.strerror or str(cause)).lower()
    return str(error) or type(error).__name__


def _worst(failures: list[MeshError], *, maybe_received: bool) -> MeshError:
    if maybe_received:
        return OutcomeUnknown(
            "; ".join(str(f) for f in failures),
            hint="read the state back (mesh failovers list, mesh groups list) before repeating it",
        )
    for failure in failures:
        if isinstance(failure, NotAllowed):
            return failure
    if len({str(f) for f in failures}) == 1:
        return failures[0]
    return Unreachable("\n".join(str(f) for f in failures), hint=failures[-1].hint)


async def _body(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        body = json.loads(await answer.read())
    except ValueError as error:
        raise MeshError(f"{answer.url} did not answer with JSON") from error
    if not isinstance(body, dict):
        raise MeshError(f"{answer.url} did not answer with a JSON object")
    return body


async def _problem(answer: aiohttp.ClientResponse) -> MeshError:
    try:
        body = await _body(answer)
    except MeshError:
        body = {"detail": f"{answer.url} answered {answer.status} {answer.reason}"}
    return problem_error(body, status=answer.status)


def problem_error(body: Mapping[str, Any], *, status: int) -> MeshError:
    """Return the error a problem+json body stands for."""
    message = str(body.get("detail") or body.get("title") or f"HTTP {status}")
    failed = [c for c in body.get("checks") or () if not c.get("ok") and not c.get("waived")]
    for check in failed:
        waivable = f" (--waive {check['name']})" if check.get("waivable") else ""
        message += f"\n  {check['name']}: {check['detail']}{waivable}"
    code = str(body.get("code") or _code_of_status(status))
    hint = str(body.get("hint") or _HINTS.get(code, ""))
    error = _BY_CODE.get(code, MeshError)(message, hint=hint)
    if type(error) is MeshError:
        error.code = code
        error.exit_code = int(body.get("exit_code") or 1)
    return error


def _code_of_status(status: int) -> str:
    return {400: "invalid_input", 401: "not_allowed", 403: "not_allowed", 404: "not_found"}.get(
        status, "unreachable" if status in (502, 503) else "failed"
    )
