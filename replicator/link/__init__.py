"""How two replicators reach each other: one port, an adapter for each technology."""
