"""The shapes of what is told of foreign writes. Pure."""

from __future__ import annotations

from coordinator.api.shapes import FLAG, NUMBER, NUMBER_OR_NULL, TEXT
from coordinator.api.shapes import list_of as _list
from coordinator.api.shapes import object_of as _object

FOREIGN_SHAPES = {
    "ForeignKey": _object(key=TEXT, revision=NUMBER, deleted=FLAG),
    "ForeignCopy": _object(
        cluster=TEXT, count=NUMBER_OR_NULL, latest=_list("ForeignKey"), problem=TEXT
    ),
    "ForeignWrites": _object(group=TEXT, clusters=_list("ForeignCopy")),
}
