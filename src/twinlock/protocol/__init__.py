"""The wire: frames, limits, clock, envelopes, signed logs and the two session state machines. Sans-I/O, no plaintext."""
