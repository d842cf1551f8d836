"""`mesh completion`."""

from __future__ import annotations

import click

from cli.options import MeshCommand


@click.command(cls=MeshCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(mesh completion bash)"
    zsh:   eval "$(mesh completion zsh)"
    fish:  mesh completion fish | source
    """  # noqa: D301 click wants the backspace itself
    from click.shell_completion import get_completion_class

    from cli.main import mesh

    made = get_completion_class(shell)
    assert made is not None, "the choices are those click knows"
    click.echo(made(mesh, {}, "mesh", "_MESH_COMPLETE").source())
