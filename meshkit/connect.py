"""Opens the etcd that a configuration names."""

from __future__ import annotations

from meshkit.clock import Clock
from meshkit.config import EtcdConfig
from meshkit.store.etcd import EtcdStore, EtcdTimeouts, EtcdTls


def connect_etcd(
    config: EtcdConfig, *, clock: Clock | None = None, timeouts: EtcdTimeouts | None = None
) -> EtcdStore:
    """Return a store for the etcd that `config` names; nothing is sent before its first use.

    Raises:
        InvalidConfig: a file it names cannot be read.
    """
    tls = None
    if config.is_tls:
        assert config.ca is not None, "checked when the configuration was loaded"
        tls = EtcdTls(ca=config.ca, cert=config.cert, key=config.key)
    return EtcdStore.connect(
        config.endpoints,
        tls=tls,
        username=config.username or None,
        password=config.password() or None,
        clock=clock,
        timeouts=timeouts,
    )
