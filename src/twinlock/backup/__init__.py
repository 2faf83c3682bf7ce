"""Backups of a server's data, their way back, and moves from one engine to another. See docs/operate/backup.md."""

from twinlock.backup.drilling import ServerDrill, drill
from twinlock.backup.format import Counts, Manifest
from twinlock.backup.generations import list_generations, prune, read_generation
from twinlock.backup.holdings import Holdings, Place
from twinlock.backup.making import Made, make_backup
from twinlock.backup.restoring import Restored, restore

__all__ = [
    "Counts",
    "Holdings",
    "Made",
    "Manifest",
    "Place",
    "Restored",
    "ServerDrill",
    "drill",
    "list_generations",
    "make_backup",
    "prune",
    "read_generation",
    "restore",
]
