"""The requests that change an account's unlockers, signed by the account. See spec/sealing.md, section 2.2."""

from __future__ import annotations

from collections.abc import Sequence

from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import CreateAccount, PutUnlocker, SignedEntry, Unlocker
from twinlock.protocol.device_calls import Parcel, Rekem
from twinlock.protocol.names import account_name
from twinlock.protocol.unlocker_proofs import rekem_message, sign_up_message, unlocker_put_message
from twinlock.sealing.identity import AccountKeys


def sign_up_request(
    keys: AccountKeys,
    server_id: bytes,
    name: str,
    entries: Sequence[SignedEntry],
    unlockers: Sequence[Unlocker],
    token: str = "",
) -> CreateAccount:
    """Make the request for a new account."""
    name = account_name(name)
    signature = keys.sign.sign(sign_up_message(server_id, keys.account, name, unlockers))
    return CreateAccount(name, list(entries), list(unlockers), token, signature)


def put_request(
    keys: AccountKeys, server_id: bytes, state: AccountState, time_ms: int, unlocker: Unlocker
) -> PutUnlocker:
    """Make the request that replaces an unlocker under the account's present `kem` key."""
    message = unlocker_put_message(server_id, state.account, state.kem_pk, time_ms, unlocker)
    return PutUnlocker(unlocker, time_ms, keys.sign.sign(message))


def rekem_request(
    keys: AccountKeys,
    server_id: bytes,
    before: AccountState,
    entries: Sequence[SignedEntry],
    parcels: Sequence[Parcel],
    unlockers: Sequence[Unlocker],
    ends: Sequence[str] = (),
) -> Rekem:
    """Make the request that replaces the account's `kem` key by these entries, which follow `before`."""
    head = replay_account(entries, before).head
    message = rekem_message(server_id, before.account, head, parcels, unlockers, ends)
    signature = keys.sign.sign(message)
    return Rekem(before.seq, list(entries), list(parcels), list(unlockers), list(ends), signature)
