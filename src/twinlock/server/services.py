"""The parts that a session needs, in one bundle: made once by `app`, handed to whoever serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from twinlock.contracts import KeyService, Log
from twinlock.server.admission import Admission, Tickets
from twinlock.server.authorize import Authority
from twinlock.server.blob_services import BlobServices
from twinlock.server.buckets import Quotas
from twinlock.server.chores import Chores
from twinlock.server.commit import Committer
from twinlock.server.confirmations import Confirmations
from twinlock.server.devices import DeviceBook
from twinlock.server.hub import Hub
from twinlock.server.methods import Method
from twinlock.server.metrics import Metrics
from twinlock.server.neighbours import Neighbours
from twinlock.server.pairing import Pairings
from twinlock.server.presence import Presence
from twinlock.server.registry import SpaceRegistry
from twinlock.server.secrets_file import ServerSecrets
from twinlock.server.settings import Settings
from twinlock.server.sign_in import SessionEnds, TokenSignIn
from twinlock.server.space_changes import SpaceChanges
from twinlock.server.tasks import Tasks


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Everything behind the sync socket."""

    settings: Settings
    secrets: ServerSecrets
    log: Log
    keys: KeyService
    authority: Authority
    registry: SpaceRegistry
    hub: Hub
    committer: Committer
    confirmations: Confirmations
    changes: SpaceChanges
    admission: Admission
    tickets: Tickets
    quotas: Quotas
    sign_in: TokenSignIn
    session_ends: SessionEnds
    presence: Presence
    devices: DeviceBook
    pairings: Pairings
    blobs: BlobServices
    neighbours: Neighbours
    chores: Chores
    is_shared: bool
    methods: Mapping[str, Method]
    tasks: Tasks
    metrics: Metrics
    now_ms: Callable[[], int]
