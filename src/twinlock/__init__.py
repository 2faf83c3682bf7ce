"""Twinlock: real-time sync of data that its server cannot read."""
