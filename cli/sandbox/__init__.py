"""Runs a whole mesh on one machine: to try it, to test it, to break it."""
