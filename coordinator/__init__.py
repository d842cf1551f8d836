"""Decides who writes, and carries it through. Never touches application data."""
