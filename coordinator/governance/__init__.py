"""Whether a failover may begin, and the tamper-evident account of what was done."""
