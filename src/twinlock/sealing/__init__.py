"""The two keys: everything that seals, opens, wraps and signs. Sans-I/O."""
