"""`mesh version`."""

from __future__ import annotations

import click

from cli.options import MeshCommand


@click.command(cls=MeshCommand)
def version() -> None:
    """Print the versions of MeshKit and its parts."""
    import platform
    from importlib import metadata

    from cli.render import fields
    from cli.session import open_session
    from meshkit import __version__
    from meshkit.errors import NotFound
    from meshkit.etcd_binary import find_etcd

    output = open_session(click.get_current_context()).output
    try:
        etcd: str | None = find_etcd().version
    except NotFound:
        etcd = None
    body = {
        "meshkit": __version__,
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "aiohttp": metadata.version("aiohttp"),
        "etcd_local": etcd,
    }
    output.result(body, lambda: fields(body))
