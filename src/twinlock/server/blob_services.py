"""The services of blobs, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from twinlock.server.authorize import Authority
from twinlock.server.bearer import Bearers
from twinlock.server.blob_book import BlobBook
from twinlock.server.blob_chores import BlobChores
from twinlock.server.blob_due import BlobDue
from twinlock.server.blob_gate import BlobGate
from twinlock.server.blob_http import BlobHttp
from twinlock.server.blobs import Blobs
from twinlock.server.buckets import Quotas
from twinlock.server.methods import Method
from twinlock.server.metrics import Metrics
from twinlock.server.registry import SpaceRegistry
from twinlock.server.session_token import SessionTokens
from twinlock.server.settings import Settings
from twinlock.server.sign_in import SessionEnds
from twinlock.server.stores import Stores

MakeHttp = Callable[[Quotas, frozenset[str], Callable[[], bool]], BlobHttp]
"""Makes the HTTP side from the rates of accounts, whose pages may ask, and whether clients are taken."""


class BlobServices(msgspec.Struct, frozen=True):
    """What is answered over the sync socket and over HTTP, and what cleans up."""

    chores: BlobChores
    methods: Mapping[str, Method]
    make_http: MakeHttp


def build_blobs(
    settings: Settings,
    stores: Stores,
    authority: Authority,
    registry: SpaceRegistry,
    ends: SessionEnds,
    metrics: Metrics,
    now_ms: Callable[[], int],
) -> BlobServices:
    """Make the services of blobs."""
    directory, bearers = stores.directory, Bearers(stores.secrets.bearer_key)
    book, due = BlobBook(directory, now_ms), BlobDue(directory, now_ms)
    blobs = Blobs(stores.blobs, book, due, authority, registry, settings, now_ms)

    def make_http(quotas: Quotas, origins: frozenset[str], is_taking: Callable[[], bool]) -> BlobHttp:
        gate = BlobGate(quotas, settings.blob_memory_bytes_max, metrics.blob_memory.set)
        return BlobHttp(blobs, bearers, gate, metrics, now_ms, origins, is_taking)

    chores = BlobChores(stores.blobs, directory, book, due, settings, metrics, now_ms)
    tokens = SessionTokens(bearers, ends, now_ms)
    return BlobServices(chores, {**blobs.methods(), **tokens.methods()}, make_http)
