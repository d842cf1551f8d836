"""The keys of MeshKit, all under `/mesh/v1/`: nobody else builds or takes apart one. Pure."""

from __future__ import annotations

from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch

ROOT = b"/mesh/v1/"
RESERVED = b"/mesh/"
"""No group's prefix may overlap this."""


def _key(*parts: str | int) -> bytes:
    return ROOT + "/".join(str(part) for part in parts).encode()


class CoordinationKeys:
    """Keys of the coordination etcd: the source of truth for authority."""

    clusters = _key("clusters", "")
    groups = _key("groups", "")
    authorities = _key("authority", "")
    seals = _key("seals", "")
    routings = _key("routing", "")
    holders = _key("holders", "")
    heads = _key("heads", "")
    failovers = _key("failovers", "")
    commands = _key("commands", "")
    answers = _key("answers", "")
    statuses = _key("status", "")
    approvals = _key("approvals", "")
    audits = _key("audit", "")
    observations = _key("observations", "")
    verifies = _key("verify", "")
    replays = _key("replay", "")
    automation_pause = _key("automation-pause")
    """There while automation is stopped; writes, and failovers that run, go on."""
    pauses = _key("pauses", "")
    pause_of_all = _key("pauses", "all")
    """There while all replication stands still."""
    rejoins = _key("rejoins", "")
    automatics = _key("automatic", "")
    pacts = _key("pacts", "")
    coordinators = _key("coordinators", "")
    coordinator_leader = _key("coordinators", "leader")
    """Leased: which coordinator leads. Its create revision is the term."""
    incarnation = _key("incarnation")
    """Counts the adoptions of a restored coordination etcd; the first part of every token."""

    @staticmethod
    def cluster(name: ClusterName) -> bytes:
        """Descriptor of a cluster."""
        return _key("clusters", name)

    @staticmethod
    def group(name: GroupName) -> bytes:
        """Prefixes, members and policy of a group."""
        return _key("groups", name)

    @staticmethod
    def authority(name: GroupName) -> bytes:
        """Who may write: epoch, token, active cluster, lineage."""
        return _key("authority", name)

    @staticmethod
    def seal(name: GroupName) -> bytes:
        """Put to fence the active cluster: no holder may be made, no permit renewed."""
        return _key("seals", name)

    @staticmethod
    def routing(name: GroupName) -> bytes:
        """What clients watch: epoch, token, active cluster, endpoints, state."""
        return _key("routing", name)

    @staticmethod
    def holder(name: GroupName) -> bytes:
        """Leased by the active cluster's replicator: proof of life."""
        return _key("holders", name)

    @staticmethod
    def failovers_of(name: GroupName) -> bytes:
        """Prefix of everything about a group's failovers."""
        return _key("failovers", name, "")

    @staticmethod
    def failover_active(name: GroupName) -> bytes:
        """Id of the one failover that runs for the group; created only if absent."""
        return _key("failovers", name, "active")

    @staticmethod
    def failover(name: GroupName, failover: FailoverId) -> bytes:
        """A failover's record."""
        return _key("failovers", name, "records", failover)

    @staticmethod
    def failover_records(name: GroupName) -> bytes:
        """Prefix of the records of a group's failovers."""
        return _key("failovers", name, "records", "")

    @staticmethod
    def failover_event(name: GroupName, failover: FailoverId, number: int) -> bytes:
        """One transition of a failover, put in the transaction that made it."""
        return _key("failovers", name, "events", failover, f"{number:06d}")

    @staticmethod
    def failover_events(name: GroupName, failover: FailoverId) -> bytes:
        """Prefix of a failover's transitions."""
        return _key("failovers", name, "events", failover, "")

    @staticmethod
    def command(cluster: ClusterName, group: GroupName) -> bytes:
        """What a cluster must do now for a group; the mod revision is the command's token."""
        return _key("commands", cluster, group)

    @staticmethod
    def commands_to(cluster: ClusterName) -> bytes:
        """Prefix of all commands to one cluster."""
        return _key("commands", cluster, "")

    @staticmethod
    def answer(cluster: ClusterName, group: GroupName) -> bytes:
        """What the cluster did: token obeyed, outcome, cut, watermark."""
        return _key("answers", cluster, group)

    @staticmethod
    def health(cluster: ClusterName) -> bytes:
        """Leased: health, versions and revisions of a cluster, by its leading replicator."""
        return _key("status", cluster, "health")

    @staticmethod
    def stream_status(source: ClusterName, target: ClusterName) -> bytes:
        """Leased: head, acknowledged position and lag of one stream, by the source."""
        return _key("status", source, "streams", target)

    @staticmethod
    def head(source: ClusterName) -> bytes:
        """Not leased: the last head known of a source's log (5.1 rule 8)."""
        return _key("heads", source)

    @staticmethod
    def audit(group: GroupName, number: int) -> bytes:
        """One entry of a group's hash-chained audit."""
        return _key("audit", group, f"{number:010d}")

    @staticmethod
    def audit_tip(group: GroupName) -> bytes:
        """Number and hash of the last audit entry of a group."""
        return _key("audit-tip", group)

    @staticmethod
    def verifies_at(target: ClusterName) -> bytes:
        """Prefix of what one cluster is asked to compare, and of what it found."""
        return _key("verify", target, "")

    @staticmethod
    def verify(target: ClusterName, group: GroupName) -> bytes:
        """The newest request to compare a group's copy at `target` with its source."""
        return _key("verify", target, group)

    @staticmethod
    def verify_result(target: ClusterName, group: GroupName) -> bytes:
        """What the target found, in numbers; never keys or values of applications."""
        return _key("verify", target, group, "result")

    @staticmethod
    def standby_positions(source: ClusterName) -> bytes:
        """Prefix of the positions from which a source may have to serve its standbys."""
        return _key("positions", source, "")

    @staticmethod
    def standby_position(source: ClusterName, target: ClusterName) -> bytes:
        """From where `target` may have to be served: what compactor and spool of `source` keep."""
        return _key("positions", source, target)

    suspensions = _key("suspended", "")
    adoptions = _key("adoptions", "")
    adopted = _key("coordination-adoption")
    """The newest adoption of this etcd itself, after it went back."""

    @staticmethod
    def suspension(cluster: ClusterName) -> bytes:
        """Nobody leads this region, because an etcd went back; until it is adopted (4.1 rule 5)."""
        return _key("suspended", cluster)

    @staticmethod
    def adoption(cluster: ClusterName) -> bytes:
        """The newest incarnation that an operator had begun for a region's etcd, and why."""
        return _key("adoptions", cluster)

    @staticmethod
    def replays_at(target: ClusterName) -> bytes:
        """Prefix of what one cluster is asked to have sent again, and of what came of it."""
        return _key("replay", target, "")

    @staticmethod
    def replay(target: ClusterName, group: GroupName) -> bytes:
        """The newest request to send a group's history to `target` again."""
        return _key("replay", target, group)

    @staticmethod
    def replay_result(target: ClusterName, group: GroupName) -> bytes:
        """What came of it, in numbers."""
        return _key("replay", target, group, "result")

    @staticmethod
    def group_pause(group: GroupName) -> bytes:
        """There while all copies of a group stand still."""
        return _key("pauses", "groups", group)

    @staticmethod
    def stream_pause(source: ClusterName, target: ClusterName) -> bytes:
        """There while nothing is sent from one cluster to another."""
        return _key("pauses", "streams", source, target)

    @staticmethod
    def rejoin(group: GroupName, cluster: ClusterName) -> bytes:
        """The newest rejoin of a cluster for a group: how it became a standby again."""
        return _key("rejoins", group, cluster)

    @staticmethod
    def rejoins_of(group: GroupName) -> bytes:
        """Prefix of the rejoins of a group."""
        return _key("rejoins", group, "")

    @staticmethod
    def automatic(group: GroupName) -> bytes:
        """The last automatic failover of a group, who acknowledged it, and what withholds one."""
        return _key("automatic", group)

    @staticmethod
    def pact(group: GroupName) -> bytes:
        """Who may be promoted while the active cluster may go on by promise (4.1 rule 4)."""
        return _key("pacts", group)

    @staticmethod
    def observation(cluster: ClusterName) -> bytes:
        """What was last seen of a region's etcd: cluster id, revision, raft index (4.1 rule 5)."""
        return _key("observations", cluster)


class RegionalKeys:
    """Keys of a regional etcd, beside the application's own."""

    permits = _key("permit", "")
    fences = _key("fence", "")
    fence_index = _key("fence-index")
    """Rewritten with every fence; its mod revision protects an apply against all commands."""
    segments = _key("segments", "")
    beat = _key("beat")
    """Leased, changed in every round by the leading replicator; gates watch it."""
    checkpoints = _key("checkpoint", "")
    parked_writes = _key("parked", "")
    quarantines = _key("quarantine", "")
    routings = _key("routing", "")
    foreign_writes = _key("foreign", "")
    attachments = _key("attached", "")
    pacts = _key("pact", "")
    promises = _key("keep", "")
    lease_claims = _key("leases", "")
    incarnation = _key("incarnation")
    """Identity of this etcd's history; a restore from a snapshot is a new one."""
    witness = _key("witness")
    """Raised every few seconds by the leading replicator; a restored etcd has a lower one."""
    coordination_seen = _key("coordination-seen")
    """What was last seen of the coordination etcd: it cannot tell that it was restored."""
    suspended = _key("suspended")
    """Nobody leads here, because the coordination etcd went back; until that is adopted."""
    replaced = _key("replaced")
    """This etcd went back, so it may have forgotten an epoch: it promises nothing until adopted."""
    replicators = _key("replicators", "")
    replicator_leader = _key("replicators", "leader")
    """Leased: which replicator leads this region."""
    leases = _key("replicators", "leases")
    """The live leases of the chain, for a successor to adopt."""

    @staticmethod
    def permit(group: GroupName) -> bytes:
        """The write permit `{epoch, token}`; exists only while this cluster may accept writes."""
        return _key("permit", group)

    @staticmethod
    def fence(group: GroupName) -> bytes:
        """The greatest command obeyed for the group and what came of it (4.1 rule 1)."""
        return _key("fence", group)

    @staticmethod
    def segment_opened(group: GroupName, epoch: Epoch) -> bytes:
        """Put once, when the epoch opens here; its mod revision is the segment's first sequence."""
        return _key("segments", group, f"{epoch:010d}", "opened")

    @staticmethod
    def segment_scope(group: GroupName, epoch: Epoch) -> bytes:
        """The prefixes the segment covers, from this key's mod revision on."""
        return _key("segments", group, f"{epoch:010d}", "scope")

    @staticmethod
    def segment_cut(group: GroupName, epoch: Epoch) -> bytes:
        """Put by drain, deleted by undrain; its mod revision is the cut."""
        return _key("segments", group, f"{epoch:010d}", "cut")

    @staticmethod
    def checkpoint(source: ClusterName) -> bytes:
        """How far this cluster has applied a source: the main checkpoint of its stream."""
        return _key("checkpoint", source)

    @staticmethod
    def checkpoints_of(source: ClusterName) -> bytes:
        """Prefix of the checkpoints of groups that are out of step with a source's stream."""
        return _key("checkpoint", source, "")

    @staticmethod
    def group_checkpoint(source: ClusterName, group: GroupName) -> bytes:
        """A group's own checkpoint, while it is out of step with the main stream (5.1 rule 2)."""
        return _key("checkpoint", source, group)

    @staticmethod
    def parts(source: ClusterName) -> bytes:
        """How far a transaction of a source, too large for one here, is applied: until it is."""
        return _key("checkpoint", source, "parts", "open")

    @staticmethod
    def parked(group: GroupName) -> bytes:
        """A write of the group that this etcd refuses for good, and why; the group waits for it."""
        return _key("parked", group)

    @staticmethod
    def quarantine(group: GroupName, epoch: Epoch, name: str) -> bytes:
        """A write that lost, kept for a person to decide about."""
        return _key("quarantine", group, f"{epoch:010d}", name)

    @staticmethod
    def quarantine_of(group: GroupName) -> bytes:
        """Prefix of a group's quarantine."""
        return _key("quarantine", group, "")

    @staticmethod
    def quarantine_chunk(group: GroupName, epoch: Epoch, name: str, part: str) -> bytes:
        """A part of a value in quarantine that is too large for its entry."""
        return _key("quarantine-values", group, f"{epoch:010d}", name, part)

    @staticmethod
    def findings(group: GroupName) -> bytes:
        """Which keys of the copy here differed from the source when it was last compared."""
        return _key("verify", group)

    @staticmethod
    def foreign(group: GroupName) -> bytes:
        """What was written to a passive copy beside MeshKit: how much, and the last of it."""
        return _key("foreign", group)

    @staticmethod
    def lease_claim(group: GroupName) -> bytes:
        """The leases that came here with the group, or that it leaves here (5.1 rule 7)."""
        return _key("leases", group)

    @staticmethod
    def attachments_of(group: GroupName) -> bytes:
        """Prefix of what is stored about the leased keys of a passive copy."""
        return _key("attached", group, "")

    @staticmethod
    def attachment(group: GroupName, hashed: str) -> bytes:
        """Which lease one key of a passive copy hangs on at the active cluster (ADR 9)."""
        return _key("attached", group, hashed)

    @staticmethod
    def pact(group: GroupName) -> bytes:
        """Without whose promise this cluster does not go on when coordination is lost."""
        return _key("pact", group)

    @staticmethod
    def promise(group: GroupName) -> bytes:
        """Leased: a passive cluster's promise not to open the group (4.1 rule 4)."""
        return _key("keep", group)

    @staticmethod
    def promises_refused(group: GroupName) -> bytes:
        """A command to open the group waits here, so no older epoch is promised anything."""
        return _key("keep-refused", group)

    @staticmethod
    def routing(group: GroupName) -> bytes:
        """Local copy of the routing record, for clients that see only their own region."""
        return _key("routing", group)


def last_part(key: bytes) -> str:
    """Return what follows the last slash of a key."""
    return key.rsplit(b"/", 1)[-1].decode()


def parts_below(prefix: bytes, key: bytes) -> tuple[str, ...] | None:
    """Return the parts of `key` below `prefix`, or None if it is not below it."""
    parts = key[len(prefix) :].decode(errors="replace").split("/")
    return tuple(parts) if key.startswith(prefix) else None


def overlaps(one: bytes, other: bytes) -> bool:
    """Return whether some key could start with both prefixes."""
    return one.startswith(other) or other.startswith(one)
