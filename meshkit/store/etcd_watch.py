"""One watch on etcd: its own connection, its own stream, whole revisions, and resumption.

A watch resumes only after what it has delivered: the greatest revision of an event, or of a
progress notification of a server on which those are sound. The revision in a response's header is
never used: during catch-up it runs ahead of the events.

etcd splits a long response into fragments in quadratic time: a minute for 100,000 deletes. So they
are asked for only after a response was too large to be taken whole, and until that one is past.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import attrs
import grpc
import grpc.aio
import structlog

from meshkit.errors import Compacted, MeshError, NotAllowed, Unreachable
from meshkit.etcd_binary import is_progress_sound, version_parts
from meshkit.ordinals import Revision
from meshkit.store.etcd_channel import Endpoint, is_being_cancelled
from meshkit.store.etcd_errors import Judgement, Subject, in_words, judge, refusal
from meshkit.store.etcd_late import decode_events
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.etcd_pool import EndpointPool
from meshkit.store.port import Progress, RevisionChanges, WatchItem
from meshkit.store.txn import KeyRange

_log = structlog.get_logger(__name__)

_WATCH = "/etcdserverpb.Watch/Watch"
_RANGE = "/etcdserverpb.KV/Range"

_COMPACTED_DELETES_SOUND_SINCE = (3, 5, 18)
"""Before it a watch that starts at the compacted revision misses deletes there (etcd #19179)."""

WHOLE_BYTES_MAX = 16 * 1024 * 1024
"""The largest response that is taken whole; one of more comes in fragments."""

_BACKOFF_MS_MIN = 20
_BACKOFF_MS_MAX = 1_000


class _Disconnected(Exception):
    """The stream is over; the watch goes on with another."""


@attrs.define(kw_only=True, eq=False)
class EtcdWatch:
    """An iterator over the changes of a range.

    Invariant: `resume_at` is one more than the greatest revision handed to the consumer or waiting
    in `_ready`; nothing below it is ever handed over again.
    """

    pool: EndpointPool
    key_range: KeyRange
    resume_at: Revision
    progress_every_ms: int | None = None
    _ready: deque[WatchItem] = attrs.field(factory=deque, init=False)
    _is_fragmented: bool = attrs.field(default=False, init=False)
    _head: Revision = attrs.field(default=Revision(0), init=False)
    """Of the store, when the watch was created on the server last."""
    _fragments: list[wire.Event] = attrs.field(factory=list, init=False)
    _channel: grpc.aio.Channel | None = attrs.field(default=None, init=False)
    _call: Any = attrs.field(default=None, init=False)
    _reading: asyncio.Task[Any] | None = attrs.field(default=None, init=False)
    _is_progress_sound: bool = attrs.field(default=False, init=False)
    _is_token_renewed: bool = attrs.field(default=False, init=False)
    _is_over: bool = attrs.field(default=False, init=False)

    def __aiter__(self) -> EtcdWatch:
        return self

    async def __anext__(self) -> WatchItem:
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            try:
                if self._call is None:
                    await self.open()
                await self._receive()
            except _Disconnected as reason:
                _log.info("watch.disconnected", resume_at=self.resume_at, reason=str(reason))
                await self._drop_stream()
            except MeshError:
                await self.close()
                raise
        return self._ready.popleft()

    async def open(self) -> None:
        """Create the watch on some member, trying for the watch's patience.

        Raises:
            Compacted: the resume point is gone.
            NotAllowed: we may not read this range.
            Unreachable: no member accepted the watch in time.
        """
        clock = self.pool.clock
        deadline_ms = clock.now_ms() + self.pool.timeouts.watch_patience_ms
        backoff_ms = _BACKOFF_MS_MIN
        last_words = "no member could be reached"
        while not self._is_over:
            try:
                endpoint = await self.pool.pick(deadline_ms=deadline_ms)
                await self._open_on(endpoint)
            except _Disconnected as reason:
                last_words = str(reason)
                await self._drop_stream()
                self.pool.avoid(endpoint)
            except Unreachable as error:
                last_words = str(error)
            else:
                return
            left_ms = deadline_ms - clock.now_ms()
            if left_ms <= 0:
                break
            await clock.sleep_ms(min(backoff_ms, left_ms))
            backoff_ms = min(2 * backoff_ms, _BACKOFF_MS_MAX)
        raise Unreachable(f"watch: {last_words}")

    async def close(self) -> None:
        """Cancel the watch on the server and end the iteration."""
        self._is_over = True
        await self._drop_stream()

    async def _open_on(self, endpoint: Endpoint) -> None:
        metadata = await self.pool.metadata(endpoint)
        self._channel = endpoint.open_channel(
            received_bytes_max=-1 if self._is_fragmented else WHOLE_BYTES_MAX
        )
        call = self._channel.stream_stream(
            _WATCH,
            request_serializer=wire.WatchRequest.SerializeToString,
            response_deserializer=wire.WatchResponse.FromString,
        )(metadata=metadata)
        self._call = call
        create = wire.WatchCreateRequest(
            key=self.key_range[0],
            range_end=self.key_range[1],
            start_revision=self.resume_at,
            progress_notify=True,
            fragment=self._is_fragmented,
        )
        connect_ms = self.pool.timeouts.connect_ms
        try:
            async with asyncio.timeout(connect_ms / 1000):
                await call.write(wire.WatchRequest(create_request=create))
                created = await call.read()
        except TimeoutError as error:
            raise _Disconnected(f"{endpoint.target} did not create the watch") from error
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            raise _Disconnected("the watch was closed") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            await self._judge_end(endpoint, metadata, error)
            return
        if not isinstance(created, wire.WatchResponse):
            await self._judge_end(endpoint, metadata, None)
            return
        self.pool.observe(endpoint, created.header)
        self._head = Revision(created.header.revision)
        if created.canceled:
            await self._on_canceled(endpoint, metadata, created)
        self._is_progress_sound = is_progress_sound(endpoint.version)
        if version_parts(endpoint.version) < _COMPACTED_DELETES_SOUND_SINCE:
            await self._check_not_compacted(metadata)

    async def _judge_end(
        self, endpoint: Endpoint, metadata: tuple[tuple[str, str], ...], error: Exception | None
    ) -> None:
        """Raise what the end of the stream at its creation means."""
        if not isinstance(error, grpc.aio.AioRpcError):
            error = await _status(self._call)
        judgement = judge(error)
        if judgement is Judgement.REFUSED:
            raise refusal(error, Subject(operation="watch", revision=self.resume_at)) from error
        if judgement is Judgement.TOKEN_REFUSED:
            await self._renew_token(endpoint, metadata, in_words(error))
        raise _Disconnected(in_words(error)) from error

    async def _on_canceled(
        self, endpoint: Endpoint, metadata: tuple[tuple[str, str], ...], created: wire.WatchResponse
    ) -> None:
        """Raise what a watch that was refused at its creation means."""
        if created.compact_revision:
            raise self._compacted(created.compact_revision)
        reason = created.cancel_reason or "the watch was refused without a reason"
        if self.pool.username is not None or "ermission" in reason or "auth" in reason:
            # etcd 3.5.1 gives no reason: the token may be old, or the range forbidden.
            await self._renew_token(endpoint, metadata, reason)
        raise _Disconnected(reason)

    async def _renew_token(
        self, endpoint: Endpoint, metadata: tuple[tuple[str, str], ...], reason: str
    ) -> None:
        if self.pool.username is None or self._is_token_renewed:
            raise NotAllowed(f"watch: {reason}")
        self._is_token_renewed = True
        await self.pool.renew_token(endpoint, metadata)

    async def _check_not_compacted(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Ask whether the revision before the resume point is still there.

        If it is, no compaction has reached the resume point, so no delete there can be missing.
        """
        assert self._channel is not None, "asked on the watch's own connection"
        before = Revision(max(1, self.resume_at - 1))
        call = self._channel.unary_unary(
            _RANGE,
            request_serializer=wire.RangeRequest.SerializeToString,
            response_deserializer=wire.RangeResponse.FromString,
        )
        request = wire.RangeRequest(key=self.key_range[0], revision=before, count_only=True)
        try:
            await call(request, metadata=metadata, timeout=self.pool.timeouts.connect_ms / 1000)
        except grpc.aio.AioRpcError as error:
            if "future revision" in (error.details() or ""):
                return
            if judge(error) is Judgement.REFUSED:
                subject = Subject(operation="watch", revision=self.resume_at)
                raise refusal(error, subject) from error
            raise _Disconnected(in_words(error)) from error

    async def _receive(self) -> None:
        """Wait for one response and take it in."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        wait_s = None if self.progress_every_ms is None else self.progress_every_ms / 1000
        # Not awaited itself: whoever is cancelled while it waits must not end the stream.
        await asyncio.wait({self._reading}, timeout=wait_s)
        reading = self._reading
        if self._is_over or reading is None:
            return
        if not reading.done():
            await self._ask_for_progress()
            return
        self._reading = None
        if reading.cancelled():
            raise _Disconnected("the stream was cancelled")
        error = reading.exception()
        if error is not None and not isinstance(error, grpc.aio.AioRpcError):
            raise _Disconnected(str(error)) from error
        response = None if error is not None else reading.result()
        if not isinstance(response, wire.WatchResponse):
            ended = error if error is not None else await _status(self._call)
            if ended.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._is_fragmented = True
            raise _Disconnected(in_words(ended))
        self._take_in(response)
        if self._is_fragmented and self.resume_at > self._head and not self._fragments:
            self._is_fragmented = False
            raise _Disconnected("what was too large to be taken whole is past")

    async def _ask_for_progress(self) -> None:
        if self._is_progress_sound:
            request = wire.WatchRequest(progress_request=wire.WatchProgressRequest())
            try:
                await self._call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                raise _Disconnected("the stream has ended") from error

    def _take_in(self, response: wire.WatchResponse) -> None:
        if response.compact_revision:
            raise self._compacted(response.compact_revision)
        if response.canceled:
            raise _Disconnected(response.cancel_reason or "the server cancelled the watch")
        self._is_token_renewed = False
        if not response.events and not response.fragment and not self._fragments:
            if self._is_progress_sound and not response.created:
                self._on_progress(Revision(response.header.revision))
            return
        events = [*self._fragments, *response.events]
        self._fragments = []
        if response.fragment and events:
            # Revisions come in order: more may follow of the last one only.
            last = events[-1].kv.mod_revision
            whole = sum(1 for event in events if event.kv.mod_revision != last)
            events, self._fragments = events[:whole], events[whole:]
        for changes in decode_events(events):
            self._on_changes(changes)

    def _on_changes(self, changes: RevisionChanges) -> None:
        if self.resume_at <= changes.revision:
            self._ready.append(changes)
            self.resume_at = Revision(changes.revision + 1)

    def _on_progress(self, revision: Revision) -> None:
        if self.resume_at <= revision + 1:
            self._ready.append(Progress(revision=revision))
            self.resume_at = Revision(revision + 1)

    def _compacted(self, compact_revision: int) -> Compacted:
        return Compacted(revision=self.resume_at, compact_revision=compact_revision)

    async def _drop_stream(self) -> None:
        call, self._call = self._call, None
        channel, self._channel = self._channel, None
        reading, self._reading = self._reading, None
        self._fragments = []
        if call is not None:
            call.cancel()
        if reading is not None:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await asyncio.wait({reading})
        if channel is not None:
            await channel.close()


async def _status(call: Any) -> grpc.aio.AioRpcError:
    """Return how a stream ended, as an error."""
    return grpc.aio.AioRpcError(
        await call.code(),
        grpc.aio.Metadata(),
        grpc.aio.Metadata(),
        details=await call.details(),
    )
