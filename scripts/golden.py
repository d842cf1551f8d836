"""Golden samples of the stored records: `tests/golden/<schema>-<version>.json`.

`--write` writes today's sample of each class. Samples of older versions are never rewritten: they
are what readers must go on reading.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from meshkit.codec import Stored, encode
from scripts.records import sample_of, stored_classes

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"


def path_of(cls: type[Stored], version: int | None = None) -> Path:
    """Return where the sample of a class lies, for today's version or an older one."""
    return FOLDER / f"{cls.SCHEMA}-{version or cls.VERSION}.json"


def main(arguments: list[str] | None = None) -> int:
    """Write the samples if asked to; else say which differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the samples")
    wants_write = parser.parse_args(arguments).write
    differs = 0
    for cls in stored_classes():
        path, raw = path_of(cls), encode(sample_of(cls)) + b"\n"
        if path.exists() and path.read_bytes() == raw:
            continue
        differs += 1
        if wants_write:
            path.write_bytes(raw)
        sys.stdout.write(f"{path.name} {'written' if wants_write else 'differs'}\n")
    return int(bool(differs) and not wants_write)


if __name__ == "__main__":
    sys.exit(main())
