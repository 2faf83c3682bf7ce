"""The services of accounts and devices, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from twinlock.ids import AccountId
from twinlock.server.accounts import Accounts
from twinlock.server.authorize import Authority
from twinlock.server.devices import DeviceBook
from twinlock.server.drain import sign_out
from twinlock.server.heartbeat import Heartbeat
from twinlock.server.methods import Method
from twinlock.server.names import Names
from twinlock.server.oidc import Issuer
from twinlock.server.pairing import Pairings
from twinlock.server.presence import Presence
from twinlock.server.registry import SpaceRegistry
from twinlock.server.rekem import Rekeming
from twinlock.server.settings import Settings
from twinlock.server.sign_in import SessionEnds, TokenSignIn
from twinlock.server.stores import Stores
from twinlock.server.tasks import Tasks
from twinlock.server.tries import Tries
from twinlock.server.unlockers import Unlockers


class People(msgspec.Struct, frozen=True):
    """What sessions and upkeep need of these services, and the calls that they answer."""

    sign_in: TokenSignIn
    session_ends: SessionEnds
    presence: Presence
    devices: DeviceBook
    pairings: Pairings
    methods: Mapping[str, Method]


def build_people(
    settings: Settings,
    stores: Stores,
    tasks: Tasks,
    heartbeat: Heartbeat,
    authority: Authority,
    registry: SpaceRegistry,
    now_ms: Callable[[], int],
) -> People:
    """Make the services of accounts and devices."""

    def forget_sign_ins(account: AccountId) -> None:
        sign_out(heartbeat, account)

    directory, names = stores.directory, Names(stores.directory, authority)
    issuer = Issuer(settings, tasks, now_ms) if settings.takes_tokens else None
    ends, presence = SessionEnds(), Presence()
    sign_in = TokenSignIn(issuer.verify if issuer else None, names, authority, ends, settings, now_ms)
    unlockers = Unlockers(directory, authority, names, stores.secrets, settings, now_ms, forget_sign_ins)
    sign_ups = Tries(settings.sign_ups_per_min, now_ms)
    accounts = Accounts(directory, authority, registry, names, unlockers, sign_in, sign_ups)
    revocations = Tries(10 * settings.unlocker_tries_per_min, now_ms)
    devices = DeviceBook(directory, authority, presence, revocations, now_ms)
    pairings = Pairings(directory, authority, names, stores.secrets.server_id, settings.pairing_tries_per_min, now_ms)
    rekeming = Rekeming(directory, authority, unlockers, stores.secrets.server_id, forget_sign_ins)
    methods: dict[str, Method] = {}
    for part in (accounts, unlockers, sign_in, devices, pairings, rekeming):
        methods.update(part.methods())
    return People(sign_in, ends, presence, devices, pairings, methods)
