"""Automatic failover: who is gone, what the policy allows, and why nothing is done."""
