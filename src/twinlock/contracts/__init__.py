"""What the server needs from an engine and a key service: abstract classes that state durability and order."""

from twinlock.contracts.broker import Broker, Receiver
from twinlock.contracts.chains import AppendPlan, plan_append
from twinlock.contracts.directory import Change, Directory, Record, check_record
from twinlock.contracts.keys import KeyService
from twinlock.contracts.log import DeviceHead, Log, SpaceState

__all__ = [
    "AppendPlan",
    "Broker",
    "Change",
    "DeviceHead",
    "Directory",
    "KeyService",
    "Log",
    "Receiver",
    "Record",
    "SpaceState",
    "check_record",
    "plan_append",
]
