"""What may happen to a machine: a slow disk, a full one, a clock that jumps. Each only where this system allows it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")
_FILLER = "filler"
CLOCK_VARIABLE = "CLOCK_OFFSET_FILE"
_SITECUSTOMIZE = '''"""Shifts this process's wall clock by what a file says, for tests of clocks that jump."""

import os
import time

_real_ns, _path = time.time_ns, os.environ["CLOCK_OFFSET_FILE"]


def _offset_ns():
    with open(_path, "rb") as file:
        return int(file.read() or 0)


time.time_ns = lambda: _real_ns() + _offset_ns()
time.time = lambda: time.time_ns() / 1e9
'''


class Clock:
    """The wall clock of processes that are started while it is plugged in: the machine's own, and an offset.

    Only Python's clock is shifted, in processes of this project; the monotonic clock runs on, as it does when somebody
    sets a machine's time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "clock"
        self._folder.mkdir()
        self._offset = self._folder / "offset"
        self.jump_to(0)
        (self._folder / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Return what a process must find in its environment."""
        paths = [str(self._folder), *filter(None, [os.environ.get("PYTHONPATH", "")])]
        return {"PYTHONPATH": os.pathsep.join(paths), CLOCK_VARIABLE: str(self._offset)}

    def jump_to(self, seconds: float) -> None:
        """Set the clock so many seconds before or after the machine's."""
        new = self._offset.with_suffix(".new")
        new.write_text(str(int(seconds * 1e9)), encoding="ascii")
        new.replace(self._offset)


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Give a folder a file system of its own, in memory, of some bytes; skip the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system of a few MiB takes Linux and the right to mount one")
    try:
        yield folder
    finally:
        # Lazily: what a killed process had open may linger for a moment.
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(disk: Path) -> None:
    """Leave no byte free on a disk."""
    with contextlib.suppress(OSError), (disk / _FILLER).open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def clear(disk: Path) -> None:
    """Make room again."""
    (disk / _FILLER).unlink()


@contextlib.contextmanager
def slow_disk(folder: Path, pids: list[int], writes_per_s: int) -> Iterator[None]:
    """Let processes write to the disk of a folder only so many times a second; skip where that is not allowed."""
    device = f"{os.major(folder.stat().st_dev)}:{os.minor(folder.stat().st_dev)}"
    group, limit = _group(device, writes_per_s)
    try:
        try:
            group.mkdir()
            limit()
            for pid in pids:
                (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
        except OSError as exc:
            pytest.skip(f"a slow disk takes control groups and the right to use them: {exc}")
        yield
    finally:
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
                (group.parent / "cgroup.procs").write_text(pid, encoding="ascii")
            group.rmdir()


def _group(device: str, writes_per_s: int):
    """Return a group's folder and what sets its limit: of the older kind of control groups, or of the newer one."""
    name = f"twinlock-slow-{os.getpid()}"
    if (CGROUPS / "blkio").is_dir():
        group = CGROUPS / "blkio" / name
        knob, line = group / "blkio.throttle.write_iops_device", f"{device} {writes_per_s}"
    else:
        group = CGROUPS / name
        knob, line = group / "io.max", f"{device} wiops={writes_per_s}"
    return group, lambda: knob.write_text(line, encoding="ascii")
