"""A space as a sender has it on this device: the file of its drops, and the handles of its writes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from twinlock.client.device_context import DeviceContext
from twinlock.client.local_store import LocalStore
from twinlock.client.sender_file import SenderFile
from twinlock.client.writes import Write
from twinlock.errors import RoleError, TwinlockError, error_from_code
from twinlock.protocol.envelope import Kind
from twinlock.replica.batch import Batch
from twinlock.replica.events import ReplicaEvent, WritesConfirmed, WritesRefused
from twinlock.replica.handover import open_drop, pending_writes, sent_head, write_changes
from twinlock.replica.keyring import Keyring
from twinlock.replica.sender import Sender
from twinlock.sealing.cipher import Sealer

logger = logging.getLogger(__name__)


class SenderSpace:
    """Writes of a sender, and what is left of them when the account may read the space later."""

    __slots__ = ("_context", "_file", "_keyring", "_writes", "sender")

    def __init__(self, context: DeviceContext, keyring: Keyring, folder: Path) -> None:
        self._context = context
        self._keyring = keyring
        self._file = SenderFile(folder)
        self._writes: WeakValueDictionary[int, Write] = WeakValueDictionary()
        self.sender = Sender(keyring, context.state.device_keys, self._file, context.entropy)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def handles(self) -> list[Write]:
        """The writes that somebody still waits for."""
        return list(self._writes.values())

    @property
    def is_used_up(self) -> bool:
        """Whether there is nothing left to send, or to tell."""
        return not self.sender.pending_count and not self.sender.refused()

    def remove(self) -> None:
        """Forget the file: nothing in it is needed any more."""
        self._file.remove()

    def write_all(self, writes: Sequence[tuple[Batch, Write]], now_ms: int) -> list[TwinlockError | None]:
        """Make writes durable on this device, all with one flush; return each one's error or None.

        Raises:
            StoreError: the disk refused; none of them was written.
        """
        results = self.sender.write_all([batch for batch, _ in writes], now_ms)
        errors: list[TwinlockError | None] = []
        for (_, write), result in zip(writes, results, strict=True):
            if isinstance(result, int):
                self._writes[result] = write
            errors.append(None if isinstance(result, int) else result)
        return errors

    def settle(self, event: ReplicaEvent) -> None:
        """Tell the handles of writes what became of them."""
        match event:
            case WritesConfirmed(tokens=tokens):
                error = None
            case WritesRefused(tokens=tokens):
                error = error_from_code(event.code, event.detail)
            case _:
                return
        for token in tokens:
            write = self._writes.pop(token, None)
            if write is not None:
                write.settle(error)

    # Between roles

    def hand_over(self, store: LocalStore) -> dict[int, Write]:
        """Make ordinary pending writes of the drops that wait, now that this account may read and write.

        Returns:
            the handles of these writes by their tokens in the store.
        """
        opened: dict[int, bytes] = {}
        for token, data in self.sender.pending_envelopes().items():
            try:
                opened[token] = open_drop(data, self._keyring)
            except TwinlockError as exc:
                logger.warning("a drop of this device does not open", extra={"space": self._keyring.space.hex()})
                self.sender.refuse([token], exc.code, "sealed while this account was a sender")
        for event in self.sender.take_events():
            self.settle(event)
        sealer = Sealer(self._context.state.device_keys, self._context.entropy)
        with store.group():
            tokens = write_changes(store, self._keyring, sealer, list(opened.values()))
        self.sender.give_up()
        handles = ((new, self._writes.pop(old, None)) for new, old in zip(tokens, opened, strict=True))
        return {token: write for token, write in handles if write is not None}

    def take_over(self, store: LocalStore, handles: WeakValueDictionary[int, Write]) -> None:
        """Seal as drops what waits in a replica's store, now that this account may only send.

        What a sender may not write is refused; it lies in the refused list, sealed to the members of the space.
        """
        waiting = pending_writes(store)
        self.sender.keep_refused(store.refused_writes())
        tokens = self.sender.take_over([write.payload for write in waiting], sent_head(store))
        refused_count = 0
        for before, token in zip(waiting, tokens, strict=True):
            handle = handles.pop(before.token, None)
            refused_count += token is None
            if handle is None:
                continue
            if token is None:
                handle.settle(RoleError("the account became a sender before the server had this write"))
            else:
                self._writes[token] = handle
        if waiting:
            logger.warning(
                "the account became a sender",
                extra={"space": self._keyring.space.hex(), "unsent": len(waiting), "refused": refused_count},
            )


def may_write_changes(keyring: Keyring) -> bool:
    """Tell whether this account writes to a space as a member who reads it."""
    role = keyring.log.role_of(keyring.account)
    return role is not None and role.may_write(Kind.CHANGE)
