"""The sync server: it orders, stores and delivers what it cannot read."""
