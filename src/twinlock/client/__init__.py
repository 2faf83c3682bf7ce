"""The Python SDK: an open database, its spaces, collections and documents."""

from twinlock.client.batch import WriteBatch
from twinlock.client.client import Client
from twinlock.client.collection import Collection, DocumentHandle
from twinlock.client.devices import DeviceInfo
from twinlock.client.endings import EndReason, SpaceEnd
from twinlock.client.file_manifests import FileInfo, FileState
from twinlock.client.files import Files
from twinlock.client.invites import ApplicantInfo, InviteInfo
from twinlock.client.members import MemberInfo
from twinlock.client.opening import connect, recover, sign_in, sign_up
from twinlock.client.options import Options
from twinlock.client.ordered_list import Element, ListHandle
from twinlock.client.pairing import PairingApproval, PairingRequest, pair_device
from twinlock.client.query import QueryHandle
from twinlock.client.service_accounts import ServiceAccount, create_service_account
from twinlock.client.snapshots import Doc, DocChange, DocSnapshot, Snapshot
from twinlock.client.space import Space
from twinlock.client.spaces import SpaceInfo
from twinlock.client.status import Status
from twinlock.client.writes import Write

__all__ = [
    "ApplicantInfo",
    "Client",
    "Collection",
    "DeviceInfo",
    "Doc",
    "DocChange",
    "DocSnapshot",
    "DocumentHandle",
    "Element",
    "EndReason",
    "FileInfo",
    "FileState",
    "Files",
    "InviteInfo",
    "ListHandle",
    "MemberInfo",
    "Options",
    "PairingApproval",
    "PairingRequest",
    "QueryHandle",
    "ServiceAccount",
    "Snapshot",
    "Space",
    "SpaceEnd",
    "SpaceInfo",
    "Status",
    "Write",
    "WriteBatch",
    "connect",
    "create_service_account",
    "pair_device",
    "recover",
    "sign_in",
    "sign_up",
]
