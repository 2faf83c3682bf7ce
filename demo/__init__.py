"""The whole story on this machine in under a minute: `python -m demo [--once]`."""
