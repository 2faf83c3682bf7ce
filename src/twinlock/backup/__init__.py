"""Backups of a server's data, their way back, and moves from one engine to another. See docs/operate/backup.md."""

from twinlock.backup.cutover import Moved, Steps, migrate, terminate
from twinlock.backup.drilling import ServerDrill, drill
from twinlock.backup.format import Counts, Manifest
from twinlock.backup.generations import list_generations, prune, read_generation
from twinlock.backup.holdings import Holdings, Place
from twinlock.backup.making import Made, make_backup
from twinlock.backup.moving import Round, Verified
from twinlock.backup.places import EnginePlace, open_backup, open_reading, open_writing
from twinlock.backup.restoring import Restored, restore

__all__ = [
    "Counts",
    "EnginePlace",
    "Holdings",
    "Made",
    "Manifest",
    "Moved",
    "Place",
    "Restored",
    "Round",
    "ServerDrill",
    "Steps",
    "Verified",
    "drill",
    "list_generations",
    "make_backup",
    "migrate",
    "open_backup",
    "open_reading",
    "open_writing",
    "prune",
    "read_generation",
    "restore",
    "terminate",
]
