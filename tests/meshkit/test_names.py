"""Names that are safe in a key, a URL and a shell, and the sentences that refuse others."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidInput
from meshkit.names import NAME_RULE, cluster_name, failover_id, group_name

VALIDATORS: list[tuple[Callable[[str], str], str]] = [
    (cluster_name, "cluster name"),
    (group_name, "group name"),
    (failover_id, "failover id"),
]


@pytest.mark.parametrize(("validate", "what"), VALIDATORS)
@pytest.mark.parametrize("text", ["a", "0", "us-east", "a--b", "f-1b2c3d4e5f60", "x" * 63])
def test_a_dns_label_is_a_name(validate: Callable[[str], str], what: str, text: str) -> None:
    assert validate(text) == text


@pytest.mark.parametrize(("validate", "what"), VALIDATORS)
@pytest.mark.parametrize(
    "text",
    ["", "-", "-a", "a-", "A", "a_b", "a.b", "a/b", "../x", "a b", "a\n", "é", "x" * 64, "a\0b"],
)
def test_anything_else_is_refused_and_the_rule_is_said(
    validate: Callable[[str], str], what: str, text: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        validate(text)

    assert str(refused.value) == f"{text!r} is not a {what}: it must be {NAME_RULE}"


@given(st.text(max_size=70))
def test_no_accepted_name_needs_quoting_anywhere(text: str) -> None:
    try:
        name = cluster_name(text)
    except InvalidInput:
        return

    assert re.fullmatch(r"[a-z0-9-]+", name, re.ASCII)
    assert len(name) <= 63
    assert not name.startswith("-")
