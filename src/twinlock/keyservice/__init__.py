"""Custody of the service keys: a trust domain of its own."""
