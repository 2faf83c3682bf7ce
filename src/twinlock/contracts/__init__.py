"""What the server needs from an engine and a key service: abstract classes that state durability and order."""

from twinlock.contracts.broker import Broker, Receiver
from twinlock.contracts.directory import Change, Directory, Record
from twinlock.contracts.keys import KeyService
from twinlock.contracts.log import DeviceHead, Log, SpaceState

__all__ = ["Broker", "Change", "DeviceHead", "Directory", "KeyService", "Log", "Receiver", "Record", "SpaceState"]
