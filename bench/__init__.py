"""Benchmarks that print ratios against a peer or a measured ceiling. They assert no times."""
