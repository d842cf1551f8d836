"""Breaks MeshKit on purpose and judges it by recorded histories, never by log lines."""
