"""Contract suites: what an engine or a key service must pass to be one. Subclass them and give their fixtures."""

from twinlock.testing.contracts.blobs import BlobStoreContract
from twinlock.testing.contracts.broker import BrokerContract
from twinlock.testing.contracts.directory import DirectoryContract
from twinlock.testing.contracts.envelopes import Chain
from twinlock.testing.contracts.key_wrapper import KeyWrapperContract
from twinlock.testing.contracts.keys import KeyServiceContract
from twinlock.testing.contracts.log import LogContract
from twinlock.testing.contracts.log_nodes import LogNodesContract
from twinlock.testing.contracts.members import OwnedSpace, Person

__all__ = [
    "BlobStoreContract",
    "BrokerContract",
    "Chain",
    "DirectoryContract",
    "KeyServiceContract",
    "KeyWrapperContract",
    "LogContract",
    "LogNodesContract",
    "OwnedSpace",
    "Person",
]
