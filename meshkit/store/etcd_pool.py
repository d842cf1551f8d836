"""Decides which member of an etcd is asked, and whether a failed request may be asked again.

Reads and lease renewals may, on another member, until their deadline. Writes never, unless etcd
said by name that it did nothing.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from typing import Any

import attrs
import grpc
import grpc.aio
import structlog

from meshkit.clock import Clock
from meshkit.errors import MeshError, NotAllowed, OutcomeUnknown, StoreReplaced, Unreachable
from meshkit.etcd_binary import is_version_safe
from meshkit.store.etcd_channel import AUTHENTICATE, STATUS, TIME_TO_LIVE, Endpoint, Method
from meshkit.store.etcd_errors import Judgement, Subject, in_words, judge, refusal
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire

_log = structlog.get_logger(__name__)

_READY_BUDGET_MS_MAX = 400
"""How long one member may take to get ready before the next one is looked at."""

_RETRY_PAUSE_MS = 20
"""Pause after every member has been tried in vain."""

_READ_ATTEMPT_MS_MIN = 250


class Kind(enum.Enum):
    """What may be done when a request failed and nobody knows whether it was served."""

    READ = "read"
    """Ask another member; refuse an answer from a member with an old raft term."""
    RENEWAL = "renewal"
    """Ask another member; doing it twice does no harm."""
    WRITE = "write"
    """Never ask again."""


@attrs.frozen(kw_only=True)
class EtcdTimeouts:
    """How long to wait for what."""

    request_ms: int = 5_000
    connect_ms: int = 2_000
    watch_patience_ms: int = 15_000


@attrs.define(kw_only=True, eq=False)
class EndpointPool:
    """The members of one etcd, and what we have learnt of it: its id, its raft term, our token."""

    endpoints: list[Endpoint]
    clock: Clock
    timeouts: EtcdTimeouts
    username: str | None = None
    password: str | None = None
    cluster_id: int | None = None
    raft_term: int = 0
    _preferred: int = attrs.field(default=0, init=False)
    _token: str | None = attrs.field(default=None, init=False)
    _token_lock: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    async def call(
        self,
        method: Method,
        request: Any,
        *,
        kind: Kind,
        subject: Subject,
        timeout_ms: int | None = None,
    ) -> Any:
        """Send a request and return its answer.

        Raises:
            Refused: it certainly had no effect.
            OutcomeUnknown: a write or a renewal may have had one.
        """
        deadline_ms = self.clock.now_ms() + (timeout_ms or self.timeouts.request_ms)
        attempt = _Attempt(kind=kind, subject=subject, refusals_left=len(self.endpoints))
        while True:
            try:
                endpoint = await self.pick(deadline_ms=deadline_ms)
            except Unreachable as error:
                raise attempt.given_up(str(error)) from error
            metadata = await self.metadata(endpoint)
            wait_ms = self._attempt_ms(kind, deadline_ms)
            try:
                answer = await endpoint.send(method, request, timeout_ms=wait_ms, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                await self._after_failure(attempt, endpoint, error, metadata)
            else:
                if self.observe(endpoint, answer.header) or kind is not Kind.READ:
                    return answer
                self.avoid(endpoint)
                attempt.last_words = "the member lags behind its cluster"
                await self.clock.sleep_ms(_RETRY_PAUSE_MS)
            if self.clock.now_ms() >= deadline_ms:
                raise attempt.given_up("no time is left")

    @property
    def is_connected(self) -> bool:
        """Whether a member can be picked without waiting."""
        return any(endpoint.is_verified and endpoint.is_ready() for endpoint in self.endpoints)

    async def pick(self, *, deadline_ms: int) -> Endpoint:
        """Return a member that is connected and known to be of our cluster.

        Raises:
            Unreachable: no member could be connected to; nothing has been sent.
            StoreReplaced: a member is of another cluster.
        """
        now_ms = self.clock.now_ms()
        until_ms = min(deadline_ms, now_ms + self.timeouts.connect_ms)
        preferred = self.endpoints[self._preferred]
        if not preferred.is_ready():
            for endpoint in self.endpoints:
                await endpoint.begin_connecting()
        while not self._is_closed:
            for offset in range(len(self.endpoints)):
                index = (self._preferred + offset) % len(self.endpoints)
                if await self._is_usable(self.endpoints[index], until_ms):
                    self._preferred = index
                    return self.endpoints[index]
            if self.clock.now_ms() >= until_ms:
                break
            await self.clock.sleep_ms(_RETRY_PAUSE_MS)
        names = ", ".join(endpoint.target for endpoint in self.endpoints)
        raise Unreachable(f"no member of etcd could be reached at {names}")

    def observe(self, endpoint: Endpoint, header: Any) -> bool:
        """Take in what an answer says of the cluster; return whether its raft term is current.

        Raises:
            StoreReplaced: it came from another cluster.
        """
        if self.cluster_id is None:
            self.cluster_id = header.cluster_id
        elif self.cluster_id != header.cluster_id:
            endpoint.is_verified = False
            raise StoreReplaced(
                f"{endpoint.target} belongs to cluster {header.cluster_id:x}, "
                f"not to {self.cluster_id:x}"
            )
        is_current: bool = header.raft_term >= self.raft_term
        self.raft_term = max(self.raft_term, header.raft_term)
        return is_current

    def avoid(self, endpoint: Endpoint) -> None:
        """Prefer another member from now on."""
        if self.endpoints[self._preferred] is endpoint:
            self._preferred = (self._preferred + 1) % len(self.endpoints)

    async def metadata(self, endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
        """Return what accompanies every request: `hasleader`, and our token if we have a user."""
        return (("hasleader", "true"), *await self._token_metadata(endpoint))

    async def renew_token(self, endpoint: Endpoint, metadata: Sequence[tuple[str, str]]) -> None:
        """Get a new token, unless someone has done so since `metadata` was made."""
        await self._authenticate(endpoint, refused=dict(metadata).get("token"))

    async def close(self) -> None:
        """Close every connection."""
        self._is_closed = True
        for endpoint in self.endpoints:
            await endpoint.close()

    def _attempt_ms(self, kind: Kind, deadline_ms: int) -> int:
        """Return how long to wait for one member: a frozen one must leave time for the next."""
        left_ms = deadline_ms - self.clock.now_ms()
        if kind is Kind.WRITE or len(self.endpoints) == 1:
            return left_ms
        return min(left_ms, max(_READ_ATTEMPT_MS_MIN, left_ms // len(self.endpoints)))

    async def _is_usable(self, endpoint: Endpoint, until_ms: int) -> bool:
        left_ms = until_ms - self.clock.now_ms()
        budget_ms = left_ms if len(self.endpoints) == 1 else min(left_ms, _READY_BUDGET_MS_MAX)
        if not await endpoint.connected(budget_ms=max(1, budget_ms)):
            return False
        if endpoint.is_verified:
            return True
        try:
            answer = await self._introduce(endpoint, budget_ms)
        except grpc.aio.AioRpcError as error:
            if judge(error) is Judgement.REFUSED:
                raise refusal(error, Subject(operation="connect")) from error
            return False
        except Unreachable:
            return False
        self.observe(endpoint, answer.header)
        endpoint.version = getattr(answer, "version", "")
        endpoint.is_verified = True
        if not is_version_safe(endpoint.version):
            _log.warning("etcd.version_unsafe", endpoint=endpoint.target, version=endpoint.version)
        return True

    async def _introduce(self, endpoint: Endpoint, budget_ms: int) -> Any:
        """Make a member say which cluster it is of and, if we may know, its version.

        Newer versions tell their status to administrators only; then any answer will do.
        """
        method: Method = STATUS
        request: Any = wire.StatusRequest()
        is_token_renewed = False
        while True:
            metadata = await self._token_metadata(endpoint)
            try:
                return await endpoint.send(method, request, timeout_ms=budget_ms, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.PERMISSION_DENIED and method is STATUS:
                    method, request = TIME_TO_LIVE, wire.LeaseTimeToLiveRequest(ID=1)
                elif judge(error) is Judgement.TOKEN_REFUSED and not is_token_renewed:
                    is_token_renewed = True
                    await self.renew_token(endpoint, metadata)
                else:
                    raise

    async def _token_metadata(self, endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
        if self.username is None:
            return ()
        token = self._token or await self._authenticate(endpoint, refused=None)
        return (("token", token),)

    async def _authenticate(self, endpoint: Endpoint, *, refused: str | None) -> str:
        async with self._token_lock:
            if self._token is not None and self._token != refused:
                return self._token
            request = wire.AuthenticateRequest(name=self.username, password=self.password)
            subject = Subject(operation="authenticate")
            try:
                answer = await endpoint.send(
                    AUTHENTICATE, request, timeout_ms=self.timeouts.request_ms, metadata=()
                )
            except grpc.aio.AioRpcError as error:
                if judge(error) is Judgement.REFUSED:
                    raise refusal(error, subject) from error
                self.avoid(endpoint)
                raise Unreachable(f"authenticate: {in_words(error)}") from error
            token: str = answer.token
            self._token = token
            return token

    async def _after_failure(
        self,
        attempt: _Attempt,
        endpoint: Endpoint,
        error: grpc.aio.AioRpcError,
        metadata: Sequence[tuple[str, str]],
    ) -> None:
        """Return if the request may be sent again, else raise what became of it."""
        attempt.last_words = in_words(error)
        match judge(error):
            case Judgement.REFUSED:
                raise refusal(error, attempt.subject) from error
            case Judgement.TOKEN_REFUSED:
                if self.username is None or attempt.is_token_renewed:
                    words = f"{attempt.subject.operation}: {attempt.last_words}"
                    raise NotAllowed(words) from error
                attempt.is_token_renewed = True
                await self.renew_token(endpoint, metadata)
            case Judgement.REFUSED_HERE:
                self.avoid(endpoint)
                attempt.refusals_left -= 1
                if attempt.kind is Kind.WRITE and attempt.refusals_left <= 0:
                    raise attempt.given_up(attempt.last_words) from error
                if attempt.refusals_left <= 0:
                    await self.clock.sleep_ms(_RETRY_PAUSE_MS)
            case Judgement.AMBIGUOUS:
                endpoint.is_verified = False
                self.avoid(endpoint)
                attempt.is_sent = True
                if attempt.kind is Kind.WRITE:
                    raise attempt.lost(attempt.last_words) from error


@attrs.define(kw_only=True)
class _Attempt:
    """What has happened to one request so far."""

    kind: Kind
    subject: Subject
    refusals_left: int
    is_sent: bool = False
    is_token_renewed: bool = False
    last_words: str = ""

    def given_up(self, reason: str) -> MeshError:
        """Return the error for a request that will not be sent again."""
        if self.is_sent and self.kind is not Kind.READ:
            return self.lost(reason)
        words = f"; last: {self.last_words}" if self.last_words else ""
        return Unreachable(f"{self.subject.operation}: {reason}{words}")

    def lost(self, reason: str) -> MeshError:
        """Return the error for a request that was sent and not answered."""
        if self.kind is Kind.READ:
            return Unreachable(f"{self.subject.operation}: {reason}")
        return OutcomeUnknown(f"{self.subject.operation}: {reason}")
