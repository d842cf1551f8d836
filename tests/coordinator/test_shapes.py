"""What the API answers is what its description says, field by field; so are the documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from coordinator.api import evacuation_rows, stream_views, views
from coordinator.api.openapi import SCHEMAS
from coordinator.api.rejoining import rejoin_view
from coordinator.failover.plan import EMERGENCY_1
from coordinator.failover.record import Failover, Phase
from coordinator.mesh import Mesh
from coordinator.rejoin.record import Rejoin
from meshkit.codec import decode
from meshkit.names import ClusterName
from meshkit.ordinals import Revision
from meshkit.status import CopyProgress
from tests.coordinator.test_preflight import NOW

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"


def emergency() -> Failover:
    """A record in which everything is set that can be."""
    record = decode(Failover, (GOLDEN / "failover-1.json").read_bytes())
    at_consent = EMERGENCY_1.step_names.index("consent")
    return attrs.evolve(
        record,
        plan=EMERGENCY_1.name,
        phase=Phase.ADVANCING,
        undoing=False,
        cursor=at_consent,
        awaiting=None,
        target_token=None,
        fallback=None,
    )


def differences(value: Any, shape: dict[str, Any], where: str = "") -> list[str]:
    """Return what a value has that its shape has not, and the other way round."""
    if "$ref" in shape:
        return differences(value, SCHEMAS[shape["$ref"].rsplit("/", 1)[1]], where)
    if "oneOf" in shape:
        return [] if value is None else differences(value, shape["oneOf"][0], where)
    if isinstance(value, list) and shape.get("type") == "array":
        return [d for each in value for d in differences(each, shape["items"], f"{where}[]")]
    if not isinstance(value, dict) or not shape.get("properties"):
        return []
    fields = shape["properties"]
    found = [f"{where}.{name} is not described" for name in value.keys() - fields.keys()]
    found += [f"{where}.{name} is not answered" for name in fields.keys() - value.keys()]
    for name in value.keys() & fields.keys():
        found += differences(value[name], fields[name], f"{where}.{name}")
    return found


def test_a_failover_is_described() -> None:
    view = views.failover_view(emergency(), Revision(7))

    assert view["emergency"]["loss"]["others"]
    assert differences(view, SCHEMAS["Failover"]) == []


def test_an_evacuation_is_described() -> None:
    record = emergency()
    row = evacuation_rows.begun_row(record.group, outcome="would_move", running=record.id)
    begun = evacuation_rows.with_running(row, record)
    progress = evacuation_rows.progress_row(
        record.group, record.id, has_moved=False, is_under_way=True, record=record
    )
    rows = {"Evacuation": begun, "EvacuationProgress": progress}

    assert progress["loss"] == begun["loss"]
    for name, row in rows.items():
        assert differences(row, SCHEMAS[name]["properties"]["groups"]["items"]) == []
    assert differences(evacuation_rows.in_sum([progress["loss"]]), SCHEMAS["LossInSum"]) == []


def test_a_rejoin_is_described() -> None:
    record = decode(Rejoin, (GOLDEN / "rejoin-1.json").read_bytes())

    assert differences(rejoin_view(attrs.evolve(record, cursor=0)), SCHEMAS["Rejoin"]) == []


def test_a_stream_and_the_copies_over_it_are_described() -> None:
    nothing: dict[Any, Any] = {}
    mesh = Mesh(
        revision=Revision(1),
        clusters=nothing,
        groups=nothing,
        authorities=nothing,
        routings=nothing,
        sealed=frozenset(),
        health=nothing,
        streams=nothing,
    )
    stream = stream_views.stream_view(ClusterName("a"), ClusterName("b"), mesh, now_ms=NOW)
    copy = stream_views.copy_view(decode_copy())

    assert differences(stream, SCHEMAS["Stream"]) == []
    assert differences(copy, SCHEMAS["CopyProgress"]) == []


def decode_copy() -> CopyProgress:
    needed = {field.name: 0 for field in attrs.fields(CopyProgress) if field.name != "group"}
    return CopyProgress(group="orders", **needed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["api.md"])
def test_every_shape_that_a_route_names_is_described(name: str) -> None:
    """A name in the table of routes that leads nowhere sends the reader to the source."""
    routes = re.search(
        r"^## Routes\n(.*?)^###? ", (ROOT / "docs" / name).read_text(), re.MULTILINE | re.DOTALL
    )
    assert routes is not None
    named = set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)*\b(?=[\]`},]| or null)", routes[1]))

    assert named
    assert sorted(named - set(SCHEMAS)) == []


def test_every_field_of_a_failover_and_of_a_loss_is_in_the_documents_example() -> None:
    text = (ROOT / "docs/api.md").read_text()

    for name in ("Failover", "Emergency", "LossStatement", "Rejoin", "LossInSum", "Stream"):
        fields = SCHEMAS[name]["properties"]
        assert [field for field in fields if f'"{field}":' not in text] == [], name


def test_every_phase_is_in_the_document() -> None:
    text = (ROOT / "docs/api.md").read_text()

    assert "|".join(phase.value for phase in Phase) in text
