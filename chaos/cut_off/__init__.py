"""A region that is cut off under load and lives on, held against the one that is promoted."""
