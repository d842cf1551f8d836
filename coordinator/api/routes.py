"""The routes of the API as data: path, who may, what it answers. Pure.

A route is served only if it is in this table, and the table has no row without a rule.
"""

from __future__ import annotations

import enum

import attrs


class Access(enum.Enum):
    """Who may use a route. Nobody else may."""

    VERIFIED = "verified"
    """Everyone whose certificate is verified and names somebody."""
    READ = "read"
    OPERATE = "operate"

    def allows(self, role: str) -> bool:
        """Return whether a verified peer of `role` may."""
        return role in _ROLES[self]

    @property
    def roles_text(self) -> str:
        """The roles that may, in words."""
        return " or ".join(sorted(_ROLES[self]))


_ROLES = {
    Access.VERIFIED: frozenset({"operator", "reader", "cluster", "coordinator"}),
    Access.READ: frozenset({"operator", "reader", "cluster", "coordinator"}),
    Access.OPERATE: frozenset({"operator"}),
}


@attrs.frozen(kw_only=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    name: str
    """Of the handler, and the OpenAPI operation id."""
    access: Access
    summary: str
    answer: str
    """Name of the answer's schema."""
    body: str = ""
    """Name of the body's schema; empty for none."""
    query: tuple[str, ...] = ()
    media_type: str = "application/json"


def _get(path: str, name: str, summary: str, answer: str, *query: str) -> Route:
    return Route(
        method="GET",
        path=path,
        name=name,
        access=Access.READ,
        summary=summary,
        answer=answer,
        query=query,
    )


def _change(method: str, path: str, name: str, summary: str, *, body: str, answer: str) -> Route:
    return Route(
        method=method,
        path=path,
        name=name,
        access=Access.OPERATE,
        summary=summary,
        body=body,
        answer=answer,
    )


def _about(path: str, name: str, summary: str, answer: str, media_type: str) -> Route:
    return Route(
        method="GET",
        path=path,
        name=name,
        access=Access.VERIFIED,
        summary=summary,
        answer=answer,
        media_type=media_type,
    )


_JSON = "application/json"

ROUTES: tuple[Route, ...] = (
    _about("/livez", "livez", "Whether this process runs.", "Health", _JSON),
    _about("/readyz", "readyz", "Whether it can serve, and who leads.", "Health", _JSON),
    _about("/metrics", "metrics", "Metrics of this process.", "Text", "text/plain"),
    _about("/openapi.json", "openapi", "This interface, described.", "OpenApi", _JSON),
    _get("/v1/clusters", "list_clusters", "Every cluster.", "Clusters"),
    _get("/v1/clusters/{name}", "show_cluster", "One cluster.", "Cluster"),
    _change(
        "PUT",
        "/v1/clusters/{name}",
        "put_cluster",
        "Describe a cluster.",
        body="ClusterSpec",
        answer="ClusterChange",
    ),
    _change(
        "POST",
        "/v1/clusters/{name}/adopt",
        "adopt_cluster",
        "Begin a new incarnation of a suspended region's etcd, as it is now; or preview it.",
        body="AdoptRequest",
        answer="AdoptChange",
    ),
    _change(
        "POST",
        "/v1/coordination/adopt",
        "adopt_coordination",
        "Rebuild authority from the regions' fences, in a coordination etcd that went back.",
        body="CoordinationAdoptRequest",
        answer="CoordinationAdoption",
    ),
    _change(
        "POST",
        "/v1/clusters/{name}/evacuation",
        "begin_evacuation",
        "Begin a failover of every group that is active there.",
        body="EvacuationRequest",
        answer="Evacuation",
    ),
    _get(
        "/v1/clusters/{name}/evacuation",
        "show_evacuation",
        "How far an evacuation is.",
        "EvacuationProgress",
        "request_id",
        "full",
    ),
    _get("/v1/groups", "list_groups", "Every group.", "Groups"),
    _get("/v1/groups/{group}", "show_group", "One group: who writes, what if.", "GroupView"),
    _change(
        "PUT",
        "/v1/groups/{group}",
        "put_group",
        "Describe a group; a new one gets its first epoch.",
        body="GroupSpec",
        answer="GroupChange",
    ),
    _change(
        "POST",
        "/v1/groups/{group}/failovers",
        "begin_failover",
        "Begin a failover, planned or of emergency, or preview it.",
        body="FailoverRequest",
        answer="FailoverChange",
    ),
    _change(
        "POST",
        "/v1/groups/{group}/acknowledge",
        "acknowledge_automatic",
        "Say that the last automatic failover was looked at: another may begin.",
        body="Acknowledgement",
        answer="AcknowledgementChange",
    ),
    _change(
        "POST",
        "/v1/groups/{group}/verify",
        "begin_verify",
        "Have copies compared with the active cluster, and repaired.",
        body="VerifyRequest",
        answer="VerifyChange",
    ),
    _get(
        "/v1/groups/{group}/verify",
        "show_verify",
        "What was compared last, and what was found.",
        "Verifications",
        "target",
    ),
    attrs.evolve(
        _get(
            "/v1/groups/{group}/foreign",
            "list_foreign_writes",
            "What was written to passive copies beside MeshKit.",
            "ForeignWrites",
            "cluster",
        ),
        access=Access.OPERATE,
    ),
    attrs.evolve(
        _get(
            "/v1/groups/{group}/quarantine",
            "list_quarantine",
            "Writes that lost, as each member keeps them.",
            "Quarantine",
            "cluster",
            "epoch",
            "after",
            "limit",
        ),
        access=Access.OPERATE,
    ),
    attrs.evolve(
        _get(
            "/v1/groups/{group}/quarantine/{entry}",
            "show_quarantine",
            "One write that lost, with its values whole.",
            "QuarantineEntry",
        ),
        access=Access.OPERATE,
    ),
    _change(
        "POST",
        "/v1/groups/{group}/quarantine/replay",
        "replay_quarantine",
        "Write entries at the active cluster, where nothing else changed the key.",
        body="QuarantineAct",
        answer="QuarantineReplay",
    ),
    _change(
        "POST",
        "/v1/groups/{group}/quarantine/discard",
        "discard_quarantine",
        "Remove entries for ever.",
        body="QuarantineAct",
        answer="QuarantineDiscard",
    ),
    _change(
        "POST",
        "/v1/groups/{group}/replay",
        "begin_replay",
        "Have a group's history sent to its copies again.",
        body="ReplayRequest",
        answer="Replays",
    ),
    _get("/v1/groups/{group}/replay", "show_replay", "What was sent again last.", "Replays"),
    _get("/v1/failovers", "list_failovers", "Failovers, newest first.", "Failovers", "group"),
    _get("/v1/failovers/{failover}", "show_failover", "One failover.", "Failover"),
    attrs.evolve(
        _get(
            "/v1/failovers/{failover}/events",
            "follow_failover",
            "Each stored transition, then the end.",
            "Text",
        ),
        media_type="text/event-stream",
    ),
    _change(
        "POST",
        "/v1/failovers/{failover}/abort",
        "abort_failover",
        "Undo a failover; refused from the pivot on.",
        body="Reason",
        answer="FailoverChange",
    ),
    _change(
        "POST",
        "/v1/failovers/{failover}/consent",
        "consent_failover",
        "Accept what an emergency may lose, within a bound.",
        body="Consent",
        answer="FailoverChange",
    ),
    _change(
        "POST",
        "/v1/failovers/{failover}/resume",
        "resume_failover",
        "Try a held failover again.",
        body="Reason",
        answer="FailoverChange",
    ),
    _get("/v1/rejoins", "list_rejoins", "Rejoins, newest first.", "Rejoins", "group"),
    _get("/v1/rejoins/{rejoin}", "show_rejoin", "One rejoin.", "Rejoin"),
    _change(
        "POST",
        "/v1/clusters/{name}/rejoin",
        "begin_rejoin",
        "Begin the rejoins that a cluster needs.",
        body="RejoinRequest",
        answer="RejoinsBegun",
    ),
    _change(
        "POST",
        "/v1/rejoins/{rejoin}/approve",
        "approve_rejoin",
        "Give up what is not in quarantine.",
        body="Reason",
        answer="RejoinChange",
    ),
    _change(
        "POST",
        "/v1/rejoins/{rejoin}/resume",
        "resume_rejoin",
        "Try a held rejoin again.",
        body="Reason",
        answer="RejoinChange",
    ),
    _get("/v1/replication", "list_streams", "Streams and their lag.", "Streams", "group"),
    _change(
        "POST",
        "/v1/replication/pause",
        "pause_replication",
        "Let the copies of a group, a stream or all stand still.",
        body="PauseRequest",
        answer="ReplicationPauses",
    ),
    _change(
        "POST",
        "/v1/replication/resume",
        "resume_replication",
        "Let copies that stand still go on.",
        body="PauseRequest",
        answer="ReplicationPauses",
    ),
    _get("/v1/automation", "show_automation", "Whether automation is paused.", "Automation"),
    _change(
        "POST",
        "/v1/automation/pause",
        "pause_automation",
        "Begin nothing by itself; writes go on.",
        body="Reason",
        answer="AutomationChange",
    ),
    _change(
        "POST",
        "/v1/automation/resume",
        "resume_automation",
        "Let automation go on.",
        body="Reason",
        answer="AutomationChange",
    ),
    _get("/v1/audit/{group}", "list_audit", "A group's audit.", "Audit", "after", "limit"),
    _get("/v1/audit/{group}/verify", "verify_audit", "Whether the chain is whole.", "AuditVerdict"),
)
