"""The Python SDK: the asyncio shell around replica, sealing and protocol."""
