"""Following a replaced `kem` key: this device's parcel is fetched, checked and kept. See spec/sealing.md, section 2."""

from __future__ import annotations

import logging

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.errors import OpenError
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.device_calls import TakeParcel, TakeParcelResult
from twinlock.sealing.pairing import open_parcel

logger = logging.getLogger(__name__)


class ParcelTaker:
    """Keeps the reading half of the account's keys the one that its log names."""

    __slots__ = ("_connection", "_context")

    def __init__(self, context: DeviceContext, connection: Connection) -> None:
        self._context = context
        self._connection = connection

    async def follow(self, state: AccountState) -> None:
        """Take this device's parcel if the account's log names another key than this device has.

        A parcel that is missing or wrong leaves everything as it is: what is wrapped to the new key stays closed, what
        was wrapped before stays open, and the next look at the log tries again.
        """
        kept = self._context.state
        if state.account != kept.home.account or state.kem_pk == kept.account_kem.kem_pk:
            return
        if kept.device_keys.device not in state.devices:
            return
        result = await self._connection.call("account.parcel", TakeParcel(), TakeParcelResult)
        try:
            kept.put_account_kem(open_parcel(result.sealed, kept.device_keys, state))
        except OpenError:
            logger.warning("the account's new key did not come with its entry")
