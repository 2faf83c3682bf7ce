"""Custody of the service keys: its own database, ledger and root key. Imports nothing of the server's or members'."""

from twinlock.keyservice.ledger import LedgerRecord, LedgerReport
from twinlock.keyservice.service import LocalKeyService
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.keyservice.wrapper import KeyWrapper
from twinlock.keyservice.wrapper_file import FileKeyWrapper

__all__ = ["FileKeyWrapper", "KeyServiceSettings", "KeyWrapper", "LedgerRecord", "LedgerReport", "LocalKeyService"]
