"""What the server needs from an engine and a key service: abstract classes that state durability and order."""

from twinlock.contracts.broker import Broker, Receiver
from twinlock.contracts.chains import AppendPlan, plan_append
from twinlock.contracts.directory import Change, Directory, Record, check_record
from twinlock.contracts.keys import Asking, KeyService
from twinlock.contracts.log import Append, DeviceHead, Log, Outcome, SpaceState

__all__ = [
    "Append",
    "AppendPlan",
    "Asking",
    "Broker",
    "Change",
    "DeviceHead",
    "Directory",
    "KeyService",
    "Log",
    "Outcome",
    "Receiver",
    "Record",
    "SpaceState",
    "check_record",
    "plan_append",
]
