"""The records below a prefix, mirrored, each decoded once for every time it is put."""

from __future__ import annotations

from typing import Generic, TypeVar

import structlog

from meshkit.clock import Clock
from meshkit.codec import Stored, decode
from meshkit.errors import CorruptRecord
from meshkit.mirror import PrefixMirror
from meshkit.store.port import Store

_log = structlog.get_logger()

R = TypeVar("R", bound=Stored)


class DecodedMirror(Generic[R]):
    """What cannot be read counts as absent."""

    def __init__(self, cls: type[R], store: Store, prefix: bytes, *, clock: Clock) -> None:
        self.records: dict[bytes, R] = {}
        self.mirror = PrefixMirror(store, prefix, clock=clock)
        self._cls = cls
        self.mirror.on_change(self._on_change)

    def _on_change(self, keys: frozenset[bytes]) -> None:
        for key in keys:
            self.records.pop(key, None)
            item = self.mirror.entries.get(key)
            if item is None:
                continue
            try:
                self.records[key] = decode(self._cls, item.value)
            except CorruptRecord as error:
                _log.warning("record.unreadable", key=key.decode(), why=str(error))
