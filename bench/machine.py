"""The machine under test: which core does what, how fast its disk is, how much memory a process holds."""

from __future__ import annotations

import math
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.figure import quantile

SERVER_CORE = 0
LOAD_CORE = 1
# Read once, before this process pins itself: afterwards it would see only its own core.
CORES = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def can_pin() -> bool:
    """Tell whether this system lets a process be pinned, and has two cores to keep apart."""
    return len(CORES) > 1


def pin_this_process(core: int) -> None:
    """Keep this process, and children it starts from now on, on one core."""
    if can_pin():
        os.sched_setaffinity(0, {CORES[core]})


def pinned_to(core: int) -> Callable[[], None] | None:
    """Return what a child calls before it becomes another program, so that it stays on one core."""
    if not can_pin():
        return None
    chosen = {CORES[core]}
    return lambda: os.sched_setaffinity(0, chosen)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def resident_bytes(pid: int) -> int:
    """Return how much memory a process holds just now, 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def resident_bytes_max() -> int:
    """Return how much memory this process held at most so far."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        # In kilobytes on most systems, and for a child no less than what its parent held.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def cpu_seconds(pid: int) -> float:
    """Return how much processor time a process has used so far; nan where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_seconds() -> tuple[float, float]:
    """Return how long all cores together were idle so far, and idle while a disk was waited for; nan if not told."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=6)
    except OSError:
        return math.nan, math.nan
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[4]) / ticks, int(fields[5]) / ticks


def fdatasync_ms(folder: Path, times: int = 200) -> float:
    """Return the median time to append 4 KiB to a file and have it on disk."""
    sync = getattr(os, "fdatasync", os.fsync)
    taken_ms: list[float] = []
    with (folder / "fsync-probe").open("wb", buffering=0) as file:
        for _ in range(times):
            started = time.perf_counter()
            file.write(bytes(4096))
            sync(file.fileno())
            taken_ms.append((time.perf_counter() - started) * 1000)
    (folder / "fsync-probe").unlink()
    return quantile(taken_ms, 0.5)


def describe() -> dict[str, str]:
    """Return what a reader must know of this machine to compare figures."""
    return {
        "system": platform.platform(),
        "processor": _processor_name(),
        "cores": str(os.cpu_count()),
        "python": sys.version.split()[0],
        "pinned": "server on one core, load on another" if can_pin() else "not pinned: this system cannot",
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
