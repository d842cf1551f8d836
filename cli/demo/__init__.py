"""Three regions on this machine, a planned failover under load, and the proof of no loss."""
