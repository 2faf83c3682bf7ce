"""What an open database can do with the membership of its spaces, in one place."""

from __future__ import annotations

from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.epochs import Epochs
from twinlock.client.invites import Invites
from twinlock.client.joining import Joiner
from twinlock.client.log_writer import LogWriter
from twinlock.client.members import Members
from twinlock.client.rotations import Rotations
from twinlock.client.space_settings import SpaceSettings
from twinlock.client.sudo import Sudo


class Sharing:
    """The parts that change spaces' logs, made once for a database."""

    __slots__ = ("invites", "joiner", "members", "rotations", "settings")

    def __init__(self, context: DeviceContext, connection: Connection, courier: Courier, sudo: Sudo) -> None:
        writer = LogWriter(context, connection, courier, sudo)
        epochs = Epochs(context, connection)
        self.members = Members(context, connection, courier, writer, epochs)
        self.invites = Invites(context, connection, writer, self.members)
        self.settings = SpaceSettings(context, courier, writer, epochs)
        self.joiner = Joiner(context, connection, courier, sudo)
        self.rotations = Rotations(context, courier, self.settings, sudo)
