"""A device's state: replica, outbox, keyring, live queries. Sans-I/O."""
