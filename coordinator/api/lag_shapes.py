"""How a lag looks in the API's schema."""

from __future__ import annotations

from typing import Any

from coordinator.api.shapes import NUMBER_OR_NULL, TEXT
from coordinator.api.shapes import object_of as _object
from coordinator.api.shapes import one_of as _one_of
from meshkit.status import StreamState

LAG: dict[str, dict[str, Any]] = {
    "state": _one_of(StreamState),
    "lag_ms": NUMBER_OR_NULL,
    "lag_error_ms": NUMBER_OR_NULL,
    "records": NUMBER_OR_NULL,
    "bytes": NUMBER_OR_NULL,
}

LAG_SHAPES = {
    "Lag": _object(**LAG),
    "GroupBehind": _object(group=TEXT, why=TEXT, text=TEXT, position=NUMBER_OR_NULL, **LAG),
}
