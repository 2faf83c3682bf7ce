"""The services of accounts and devices, put together."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twinlock.ids import AccountId
from twinlock.server.accounts import Accounts
from twinlock.server.authorize import Authority
from twinlock.server.devices import DeviceBook
from twinlock.server.drain import sign_out
from twinlock.server.heartbeat import Heartbeat
from twinlock.server.methods import Method
from twinlock.server.names import Names
from twinlock.server.neighbours import Neighbours, SignedOut
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
    neighbours: Neighbours,
) -> People:
    """Make the services of accounts and devices."""
    now_ms = neighbours.rates.now_ms

    def forget_sign_ins(account: AccountId) -> None:
        sign_out(heartbeat, account)
        neighbours.tell(SignedOut(account))

    def tries(per_min: int, kind: str) -> Tries:
        return Tries(per_min, now_ms, neighbours.rates, kind)

    directory, names = stores.directory, Names(stores.directory, authority)
    issuer = Issuer(settings, tasks, now_ms) if settings.takes_tokens else None
    ends, presence = SessionEnds(), Presence()
    tokens = tries(settings.sign_ups_per_min, "tokens")
    sign_in = TokenSignIn(issuer.verify if issuer else None, names, authority, ends, settings, tokens)
    unlocker_tries = tries(settings.unlocker_tries_per_min, "unlockers")
    # One address may stand for an office, so it gets more tries than one name.
    addresses = tries(10 * settings.unlocker_tries_per_min, "unlocker addresses")
    unlockers = Unlockers(
        directory, authority, names, stores.secrets, (unlocker_tries, addresses), now_ms, forget_sign_ins
    )
    sign_ups = tries(settings.sign_ups_per_min, "sign-ups")
    accounts = Accounts(directory, authority, registry, names, unlockers, sign_in, sign_ups)
    revocations = tries(10 * settings.unlocker_tries_per_min, "revocations")
    devices = DeviceBook(directory, authority, presence, neighbours, revocations, now_ms)
    server_id, per_min = stores.secrets.server_id, settings.pairing_tries_per_min
    pairings = Pairings(directory, authority, names, server_id, per_min, now_ms, neighbours.rates)
    rekeming = Rekeming(directory, authority, unlockers, server_id, forget_sign_ins)
    methods: dict[str, Method] = {}
    for part in (accounts, unlockers, sign_in, devices, pairings, rekeming):
        methods.update(part.methods())
    return People(sign_in, ends, presence, devices, pairings, methods)
