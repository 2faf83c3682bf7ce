"""What lies in a space's quarantine because this device does not know enough: heads of the log, and devices."""

from __future__ import annotations

from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import LogForkError, SignatureError
from twinlock.ids import DeviceId, Seq
from twinlock.protocol.envelope import parse
from twinlock.protocol.frames import Attached
from twinlock.protocol.labels import label
from twinlock.protocol.proofs import verify
from twinlock.replica.store import QuarantinedEnvelope
from twinlock.sealing.quarantine import QuarantineReason


def check_log_head(runtime: SpaceRuntime, frame: Attached) -> None:
    """Leave a server that shows another log of as many entries; a shorter or a longer one is read and compared.

    Raises:
        LogForkError: it does.
    """
    known = runtime.keyring.log
    if frame.log_seq == known.seq and frame.log_head != known.head:
        raise LogForkError(f"entry {known.seq} of a space's log is another one")


def unknown_heads(runtime: SpaceRuntime) -> set[Seq]:
    """Return the entries in which a member's device names a head that is not in the log as it was read here.

    What still does so after the log was read again shows that the server hides a part of it.
    """
    found = _quarantined(runtime, QuarantineReason.LOG_HEAD)
    return {kept.seq for kept in found if _is_signed(runtime, kept.data)}


def unknown_devices(runtime: SpaceRuntime) -> set[DeviceId]:
    """Return the devices that sent something and that no member's log had certified when it came."""
    return {parse(kept.data).header.device for kept in _quarantined(runtime, QuarantineReason.DEVICE)}


def _quarantined(runtime: SpaceRuntime, reason: QuarantineReason) -> list[QuarantinedEnvelope]:
    found = runtime.replica.quarantined() if runtime.replica is not None else []
    return [kept for kept in found if kept.reason == reason]


def _is_signed(runtime: SpaceRuntime, data: bytes) -> bool:
    envelope = parse(data)
    records = (state.certified(envelope.header.device) for state in runtime.keyring.accounts.values())
    for record in filter(None, records):
        try:
            verify(record.sign_pk, envelope.signature, label("envelope", envelope.id))
        except SignatureError:
            return False
        return True
    return False
