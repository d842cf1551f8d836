"""Pins what the virtual environment holds now into `constraints.txt`: `make lock`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
HEADER = """\
# The version of everything in .venv, direct or not. `make venv` installs with these.
# Made by `make lock`, which is `pip freeze` of .venv without MeshKit itself. To move on: raise
# or drop the lines in question, `make venv`, `make check test`, `make lock`.
"""


def main() -> None:
    """Write `constraints.txt`."""
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude-editable", "--exclude", "meshkit"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    pins = [line for line in frozen.splitlines() if "==" in line]
    CONSTRAINTS.write_text(HEADER + "\n".join(sorted(pins, key=str.lower)) + "\n")


if __name__ == "__main__":
    main()
