"""The `mesh` command, and the sandbox it can run on one machine."""
