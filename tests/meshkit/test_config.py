"""Process configuration: what is refused, and what the refusal says."""

from pathlib import Path

import pytest

from meshkit.config import (
    HostPort,
    TimingProfile,
    load_coordinator_config,
    load_replicator_config,
)
from meshkit.errors import InvalidConfig

REPLICATOR = """\
cluster: us-east
name: us-east-1
listen: 127.0.0.1:7401
regional_etcd:
  endpoints: [https://127.0.0.1:2379]
  ca: ca.pem
  cert: me.pem
  key: me.key
coordination_etcd:
  endpoints: [https://127.0.0.1:3379, https://127.0.0.1:4379]
  ca: ca.pem
  cert: me.pem
  key: me.key
identity: {ca: ca.pem, cert: me.pem, key: me.key, trust_domain: mesh.test}
timing: {profile: fast, round_interval_ms: 200}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("ca.pem", "me.pem", "me.key"):
        (tmp_path / name).write_text(name)
    (tmp_path / "me.key").chmod(0o600)
    return tmp_path


def refusal(directory: Path, text: str) -> str:
    path = directory / "replicator.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        load_replicator_config(path)
    return str(caught.value).replace(f"{directory}/", "")


def test_a_complete_file_is_loaded_with_paths_beside_it(directory: Path) -> None:
    path = directory / "replicator.yaml"
    path.write_text(REPLICATOR)

    config = load_replicator_config(path)

    assert config.cluster == "us-east"
    assert config.listen == HostPort("127.0.0.1", 7401)
    assert config.regional_etcd.key == directory / "me.key"
    assert config.timing.profile is TimingProfile.FAST
    assert config.timing.overrides() == {"round_interval_ms": 200}


def test_spool_and_compactor_are_off_unless_given(directory: Path) -> None:
    """Who did not ask for them keeps what etcd's own settings decide."""
    path = directory / "replicator.yaml"
    path.write_text(REPLICATOR)
    plain = load_replicator_config(path)
    assert (plain.spool, plain.compactor) == (None, None)

    path.write_text(REPLICATOR + "spool: {directory: spool}\ncompactor: {hold_ms: 900000}\n")
    config = load_replicator_config(path)

    assert config.spool is not None
    assert config.spool.directory == directory / "spool"
    assert config.compactor is not None
    assert config.compactor.hold_ms == 900_000


def test_a_hold_shorter_than_what_is_kept_is_refused(directory: Path) -> None:
    text = REPLICATOR + "compactor: {keep_ms: 600000, hold_ms: 300000}\n"

    assert "hold_ms: must not be less than keep_ms" in refusal(directory, text)


def test_every_problem_is_reported_with_line_and_field(directory: Path) -> None:
    text = REPLICATOR.replace("name: us-east-1", "nmae: us-east-1")
    text = text.replace("listen: 127.0.0.1:7401", "listen: 7401")
    text = text.replace("profile: fast", "profile: quick")

    assert refusal(directory, text).splitlines() == [
        "replicator.yaml:2: nmae: unknown field; did you mean 'name'?",
        "replicator.yaml:3: listen: expected host:port such as 127.0.0.1:7443, found '7401'",
        "replicator.yaml:15: timing.profile: expected one of default, fast, found 'quick'",
        "replicator.yaml:1: name: is required: text",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("us-east\n", "US_East\n"), "1: cluster: 'US_East' is not a cluster name"),
        (("https://127.0.0.1:2379", "127.0.0.1:2379"), "expected https://host:port, found"),
        (("https://127.0.0.1:2379", "http://127.0.0.1:2379"), "is not TLS; use https"),
        (("[https://127.0.0.1:2379]", "https://127.0.0.1:2379"), "expected a list of text"),
        (("round_interval_ms: 200", "round_interval_ms: soon"), "a whole number, found 'soon'"),
        (("round_interval_ms: 200", "round_interval_ms: 0"), "must be positive, found 0"),
        (("identity: {ca", "identity: {ca: x, ca"), "identity.ca: given twice"),
        (("  ca: ca.pem\n", "  ca: gone.pem\n"), "gone.pem does not exist"),
    ],
)
def test_wrong_values_are_refused(directory: Path, change: tuple[str, str], words: str) -> None:
    assert words in refusal(directory, REPLICATOR.replace(*change, 1))


def test_broken_yaml_says_where(directory: Path) -> None:
    assert refusal(directory, "cluster: [us\nname: x").startswith("replicator.yaml:2:5: not valid")


def test_an_empty_file_is_refused(directory: Path) -> None:
    assert refusal(directory, "") == "replicator.yaml is empty"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="No such file"):
        load_coordinator_config(tmp_path / "none.yaml")


def test_a_key_that_others_can_read_is_refused_unless_overridden(directory: Path) -> None:
    (directory / "me.key").chmod(0o644)

    assert "me.key has mode 0644: others can read this secret" in refusal(directory, REPLICATOR)

    path = directory / "replicator.yaml"
    assert load_replicator_config(path, environ={"MESH_ALLOW_READABLE_KEYS": "1"}).name


def test_a_coordinator_needs_no_regional_etcd(directory: Path) -> None:
    path = directory / "coordinator.yaml"
    path.write_text(
        "name: c1\nlisten: 127.0.0.1:0\nidentity: {ca: ca.pem, cert: me.pem, key: me.key}\n"
        "coordination_etcd: {endpoints: ['https://[::1]:1'], ca: ca.pem}\n"
    )

    assert load_coordinator_config(path).timing.profile is TimingProfile.DEFAULT
