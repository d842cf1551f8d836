"""How superseded clusters become standbys again."""
