"""The API over HTTP: who asks, what they ask, and what they are told."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs
import structlog
from aiohttp import web

from coordinator.api import bodies, openapi, views
from coordinator.api.adopting import AdoptHandlers, Adopting
from coordinator.api.automatic_handlers import AutomaticHandlers
from coordinator.api.coordination_adopting import CoordinationAdopting, CoordinationHandlers
from coordinator.api.evacuating import Evacuating
from coordinator.api.evacuation_handlers import EvacuationHandlers
from coordinator.api.follow import follow
from coordinator.api.foreign import ForeignListing
from coordinator.api.metrics import Metrics
from coordinator.api.operations import AUDIT_ENTRIES_MAX, Operations
from coordinator.api.pausing import Pausing
from coordinator.api.problems import MEDIA_TYPE, problem_of
from coordinator.api.quarantine_handlers import QuarantineHandlers
from coordinator.api.quarantining import Quarantining
from coordinator.api.refusals import Refusals
from coordinator.api.rejoin_handlers import RejoinHandlers
from coordinator.api.rejoining import RejoinOperations
from coordinator.api.replaying import Replaying
from coordinator.api.routes import ROUTES, Route
from coordinator.api.verifying import Verifying
from coordinator.governance.audit import MESH_AUDIT
from fencing.timing import Timing
from meshkit.asker import AskRegion, NobodyToAsk, RegionSilent
from meshkit.clock import Clock
from meshkit.errors import InvalidInput, MeshError, NotAllowed, NotFound, Unreachable
from meshkit.identity import peer_of_der
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import GroupName, cluster_name, failover_id, group_name
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store

_log = structlog.get_logger()

BODY_BYTES_MAX = 256 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Identify = Callable[[web.Request], PeerIdentity]
PEER = web.RequestKey("peer", PeerIdentity)


def _peer_of(request: web.Request) -> PeerIdentity:
    return request[PEER]


def identify_by_tls(trust_domain: str) -> Identify:
    """Return what tells who asks, by the certificate of the connection."""

    def identify(request: web.Request) -> PeerIdentity:
        ssl_object = request.transport.get_extra_info("ssl_object") if request.transport else None
        certificate = ssl_object.getpeercert(binary_form=True) if ssl_object else None
        if certificate is None:
            raise NotAllowed("the connection has no verified client certificate")
        return peer_of_der(certificate, trust_domain=trust_domain)

    return identify


@attrs.define(kw_only=True, eq=False)
class Api:
    """The handlers, one for each row of the route table."""

    store: Store
    clock: Clock
    identify: Identify
    is_leading: Callable[[], bool]
    metrics: Metrics = attrs.field(factory=Metrics)
    coordination_ttl_ms: int = Timing().coordination_ttl_ms
    asker: AskRegion = attrs.field(factory=NobodyToAsk)
    """Reaches the regions' replicators, for what the coordination etcd must not hold."""
    _operations: Operations = attrs.field(init=False)
    _verifying: Verifying = attrs.field(init=False)
    _replaying: Replaying = attrs.field(init=False)
    _pausing: Pausing = attrs.field(init=False)
    _refusals: Refusals = attrs.field(init=False)
    _more: Mapping[str, Handler] = attrs.field(init=False)
    """Handlers that live elsewhere, by the names of their routes."""

    def __attrs_post_init__(self) -> None:
        self._operations = Operations(
            store=self.store, clock=self.clock, coordination_ttl_ms=self.coordination_ttl_ms
        )
        self._verifying = Verifying(store=self.store, clock=self.clock)
        self._replaying = Replaying(store=self.store, clock=self.clock)
        self._pausing = Pausing(store=self.store, clock=self.clock)
        self._refusals = Refusals(store=self.store, clock=self.clock)
        quarantining = Quarantining(store=self.store, clock=self.clock, asker=self.asker)
        quarantine = QuarantineHandlers(
            quarantining=quarantining, read_body=_body, peer_of=_peer_of
        )
        adopting = Adopting(store=self.store, clock=self.clock)
        adopt = AdoptHandlers(adopting=adopting, read_body=_body, peer_of=_peer_of)
        coordination = CoordinationHandlers(
            adopting=CoordinationAdopting(store=self.store, clock=self.clock, asker=self.asker),
            read_body=_body,
            peer_of=_peer_of,
        )
        evacuating = Evacuating(store=self.store, clock=self.clock)
        evacuation = EvacuationHandlers(evacuating=evacuating, read_body=_body, peer_of=_peer_of)
        rejoining = RejoinOperations(store=self.store, clock=self.clock)
        rejoins = RejoinHandlers(operations=rejoining, read_body=_body, peer_of=_peer_of)
        automatic = AutomaticHandlers(
            automating=self._operations.automatic, read_body=_body, peer_of=_peer_of
        )
        foreign = ForeignListing(store=self.store, asker=self.asker)
        handlers = (quarantine, adopt, coordination, evacuation, rejoins, automatic, foreign)
        self._more = {name: h for each in handlers for name, h in each.by_name().items()}

    def application(self) -> web.Application:
        """Return the application, with exactly the routes of the table."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_problems])
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._guarded(route))
        return app

    def metrics_only(self) -> web.Application:
        """Return an application with nothing but `/metrics`, for an address of its own."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        return app

    def _guarded(self, route: Route) -> Handler:
        """Return the handler of a route behind its rule."""
        handler = self._more.get(route.name) or getattr(self, f"_{route.name}")

        async def guarded(request: web.Request) -> web.StreamResponse:
            status, peer = 500, None
            try:
                peer = self.identify(request)
                if not route.access.allows(peer.role):
                    raise NotAllowed(
                        f"{peer} may not {route.method} {route.path}",
                        hint=f"it takes a certificate of role {route.access.roles_text},"
                        f" and this one is of role {peer.role}",
                    )
                request[PEER] = peer
                answer = await handler(request)
                status = answer.status
            except MeshError as error:
                status = problem_of(error)["status"]
                if peer is not None:
                    await self._refusals.note(peer, route, request.match_info, error)
                raise
            finally:
                self.metrics.count_request(route, status)
            return answer

        return guarded

    # --- about this process --------------------------------------------------------------------

    async def _livez(self, request: web.Request) -> web.StreamResponse:
        return _json({"ok": True, "leader": None, "problems": []})

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        try:
            leader = await self.store.get(Keys.coordinator_leader)
        except MeshError as error:
            problem = f"the coordination etcd does not answer: {error}"
            return _json({"ok": False, "leader": None, "problems": [problem]}, status=503)
        name = leader.value.decode(errors="replace") if leader else None
        problems = [] if leader else ["no coordinator leads"]
        return _json({"ok": True, "leader": name, "problems": problems})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        streams: list[Mapping[str, Any]] = []
        automatic: Sequence[Mapping[str, Any]] = ()
        try:
            streams = (await self._operations.streams(None))["streams"]
            automatic = await self._operations.automatic.all_standing()
        except MeshError as error:
            _log.warning("metrics.incomplete", why=str(error))
        text = self.metrics.exposition(
            is_leading=self.is_leading(),
            streams=streams,
            automatic=automatic,
            now_ms=self.clock.wall_ms(),
        )
        return web.Response(body=text, headers={"Content-Type": self.metrics.content_type})

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        return _json(openapi.document())

    # --- clusters and groups -------------------------------------------------------------------

    async def _list_clusters(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._operations.clusters())

    async def _show_cluster(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._operations.cluster(cluster_name(request.match_info["name"])))

    async def _put_cluster(self, request: web.Request) -> web.StreamResponse:
        name = cluster_name(request.match_info["name"])
        done = await self._operations.put_cluster(
            name, await _body(request), request[PEER], dry_run=_is_dry_run(request)
        )
        return _json(done)

    async def _list_groups(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._operations.groups())

    async def _show_group(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._operations.group(group_name(request.match_info["group"])))

    async def _put_group(self, request: web.Request) -> web.StreamResponse:
        name = group_name(request.match_info["group"])
        done = await self._operations.put_group(
            name, await _body(request), request[PEER], dry_run=_is_dry_run(request)
        )
        return _json(done)

    # --- failovers -----------------------------------------------------------------------------

    async def _begin_failover(self, request: web.Request) -> web.StreamResponse:
        group = group_name(request.match_info["group"])
        key = request.headers.get("Idempotency-Key", "")
        key = key or uuid.uuid4().hex
        asked = bodies.failover_of(await _body(request), idempotency_key=key)
        done = await self._operations.begin(group, asked, request[PEER])
        return _json(done.body, status=202 if done.is_begun else 200)

    async def _list_failovers(self, request: web.Request) -> web.StreamResponse:
        group = request.query.get("group")
        return _json(await self._operations.failovers(group_name(group) if group else None))

    async def _show_failover(self, request: web.Request) -> web.StreamResponse:
        from_path = failover_id(request.match_info["failover"])
        loaded = await self._operations.failover(from_path)
        return _json(views.failover_view(loaded.record, loaded.revision))

    async def _follow_failover(self, request: web.Request) -> web.StreamResponse:
        loaded = await self._operations.failover(failover_id(request.match_info["failover"]))
        after = request.headers.get("Last-Event-ID", "0")
        if not after.isdigit():
            raise InvalidInput(f"Last-Event-ID: expected a number, found {after!r}")
        return await follow(request, self.store, loaded.record, after=int(after), clock=self.clock)

    async def _abort_failover(self, request: web.Request) -> web.StreamResponse:
        failover = failover_id(request.match_info["failover"])
        reason = bodies.reason_of(await _body(request))
        return _json(await self._operations.steering.abort(failover, reason, request[PEER]))

    async def _consent_failover(self, request: web.Request) -> web.StreamResponse:
        failover = failover_id(request.match_info["failover"])
        bound = bodies.consent_of(await _body(request))
        return _json(await self._operations.steering.consent(failover, bound, request[PEER]))

    async def _resume_failover(self, request: web.Request) -> web.StreamResponse:
        failover = failover_id(request.match_info["failover"])
        reason = bodies.reason_of(await _body(request))
        return _json(await self._operations.steering.resume(failover, reason, request[PEER]))

    # --- replication and audit -----------------------------------------------------------------

    async def _list_streams(self, request: web.Request) -> web.StreamResponse:
        group = request.query.get("group")
        return _json(await self._operations.streams(group_name(group) if group else None))

    async def _pause_replication(self, request: web.Request) -> web.StreamResponse:
        asked = bodies.pause_of(await _body(request))
        return _json(await self._pausing.pause_replication(asked, request[PEER]))

    async def _resume_replication(self, request: web.Request) -> web.StreamResponse:
        asked = bodies.pause_of(await _body(request))
        return _json(await self._pausing.resume_replication(asked, request[PEER]))

    async def _show_automation(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._pausing.automation())

    async def _pause_automation(self, request: web.Request) -> web.StreamResponse:
        reason = bodies.reason_of(await _body(request))
        return _json(await self._pausing.pause_automation(reason, request[PEER]))

    async def _resume_automation(self, request: web.Request) -> web.StreamResponse:
        reason = bodies.reason_of(await _body(request))
        return _json(await self._pausing.resume_automation(reason, request[PEER]))

    async def _begin_verify(self, request: web.Request) -> web.StreamResponse:
        group = group_name(request.match_info["group"])
        key = request.headers.get("Idempotency-Key", "") or uuid.uuid4().hex
        asked = bodies.verify_of(await _body(request), idempotency_key=key)
        done = await self._verifying.ask(group, asked, request[PEER])
        return _json(done, status=202 if done["changed"] else 200)

    async def _show_verify(self, request: web.Request) -> web.StreamResponse:
        group = group_name(request.match_info["group"])
        target = request.query.get("target")
        asked = cluster_name(target) if target else None
        return _json(await self._verifying.results(group, asked))

    async def _begin_replay(self, request: web.Request) -> web.StreamResponse:
        group = group_name(request.match_info["group"])
        key = request.headers.get("Idempotency-Key", "") or uuid.uuid4().hex
        asked = bodies.replay_of(await _body(request), idempotency_key=key)
        done = await self._replaying.ask(group, asked, request[PEER])
        return _json(done, status=202 if done["changed"] else 200)

    async def _show_replay(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._replaying.results(group_name(request.match_info["group"])))

    async def _list_audit(self, request: web.Request) -> web.StreamResponse:
        group = _audited(request)
        after = _number(request, "after", 0)
        limit = _number(request, "limit", AUDIT_ENTRIES_MAX)
        return _json(await self._operations.audit(group, after=after, limit=limit))

    async def _verify_audit(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._operations.verify_audit(_audited(request)))


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document."""
    try:
        return await handler(request)
    except MeshError as error:
        return _problem(error)
    except web.HTTPNotFound:
        return _problem(NotFound(f"there is no {request.path}", hint="see GET /openapi.json"))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return _problem(InvalidInput(f"{request.path} takes {allowed}, not {request.method}"))
    except web.HTTPRequestEntityTooLarge:
        return _problem(InvalidInput(f"the body is larger than {BODY_BYTES_MAX} bytes"))
    except Exception as error:  # noqa: BLE001  the last resort: a bug is answered, and logged
        _log.exception("request.failed", path=request.path)
        return _problem(MeshError(f"{type(error).__name__}; the log of the coordinator has it"))


def _without_coordination(error: Unreachable) -> Unreachable:
    """Say whose fault it is: the API asks nobody but the coordination etcd."""
    return Unreachable(
        f"the coordination etcd does not answer: {error}",
        hint="check its members and their quorum; guarded writes stop meanwhile, and go on by"
        " themselves when it is back",
    )


def _problem(error: MeshError) -> web.Response:
    if isinstance(error, Unreachable) and not isinstance(error, RegionSilent):
        error = _without_coordination(error)
    problem = problem_of(error)
    return web.Response(
        body=json.dumps(problem).encode(),
        status=problem["status"],
        headers={"Content-Type": MEDIA_TYPE},
    )


def _is_dry_run(request: web.Request) -> bool:
    return request.query.get("dry_run", "") == "true"


def _json(body: Mapping[str, Any], *, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)


async def _body(request: web.Request) -> dict[str, Any]:
    raw = await request.read()
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidInput("the body is not a JSON object")
    return body


def _audited(request: web.Request) -> GroupName:
    name = request.match_info["group"]
    return MESH_AUDIT if name == MESH_AUDIT else group_name(name)


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isdigit():
        raise InvalidInput(f"{name}: expected a number, found {text!r}")
    return int(text)
