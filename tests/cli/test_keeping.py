"""Groups whose writes may outlive the coordination etcd, as a file says and a person sees them."""

from pathlib import Path

import pytest

from cli.specs import GroupSpec, body_of, load_specs
from meshkit.errors import InvalidConfig
from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi

FILE = """\
name: orders
prefixes: [/orders/]
members: [us-east, eu-west]
policy:
  on_coordination_loss: %s
"""


def test_a_file_says_what_becomes_of_writes(tmp_path: Path) -> None:
    path = tmp_path / "group.yaml"
    path.write_text(FILE % "keep")

    (spec,) = load_specs(GroupSpec, str(path))

    assert body_of(spec)["policy"] == {"on_coordination_loss": "keep"}


def test_what_is_neither_keep_nor_lapse_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "group.yaml"
    path.write_text(FILE % "stay")

    with pytest.raises(InvalidConfig, match="expected one of lapse, keep, found 'stay'"):
        load_specs(GroupSpec, str(path))


def test_the_one_screen_says_by_whose_promise_writes_go_on(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    text = "writes go on at us-east by the promise of eu-west"
    group = {**samples.GROUP, "on_coordination_loss": {"text": text, "goes_on": True}}
    operator_env.on("GET /v1/groups/orders", group)

    assert f"If cut off     {text}" in mesh("groups", "show", "orders").out
