"""The wire: frames, envelopes, signed logs, both session state machines. Sans-I/O, no plaintext."""
