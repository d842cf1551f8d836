"""The failover machine: plans, the stored record, the pure machine, and the shell around it."""
