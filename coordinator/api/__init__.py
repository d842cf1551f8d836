"""The automation API: HTTPS with mutual TLS, JSON, server-sent events."""
