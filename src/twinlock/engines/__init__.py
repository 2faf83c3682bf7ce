"""The stores behind the contracts, one file an engine."""
