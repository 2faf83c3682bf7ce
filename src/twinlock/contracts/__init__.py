"""What the server needs from an engine and a key service: abstract classes that state durability and order."""

from twinlock.contracts.blobs import BlobStore, StoredPart
from twinlock.contracts.broker import Broker, Receiver
from twinlock.contracts.chains import AppendPlan, plan_append
from twinlock.contracts.directory import Change, Directory, Record, check_record
from twinlock.contracts.keys import Asking, KeyService
from twinlock.contracts.log import (
    APPEND_BYTES_MAX,
    APPEND_ENVELOPES_MAX,
    Append,
    DeviceHead,
    Done,
    Follower,
    Foreign,
    Log,
    Note,
    Outcome,
    OvertakenError,
    SpaceState,
)
from twinlock.contracts.moving import (
    MOVING_KEY,
    Moving,
    Whereabouts,
    check_served,
    decode_moving,
    encode_moving,
    refuse_moved,
)

__all__ = [
    "APPEND_BYTES_MAX",
    "APPEND_ENVELOPES_MAX",
    "MOVING_KEY",
    "Append",
    "AppendPlan",
    "Asking",
    "BlobStore",
    "Broker",
    "Change",
    "DeviceHead",
    "Directory",
    "Done",
    "Follower",
    "Foreign",
    "KeyService",
    "Log",
    "Moving",
    "Note",
    "Outcome",
    "OvertakenError",
    "Receiver",
    "Record",
    "SpaceState",
    "StoredPart",
    "Whereabouts",
    "check_record",
    "check_served",
    "decode_moving",
    "encode_moving",
    "plan_append",
    "refuse_moved",
]
