"""`twinlock dev` and the `twinlock` command as a person runs them: as programs, in an empty home."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from twinlock.client.transport import parse_address

START_SECONDS_MAX = 30


class DevServer(NamedTuple):
    """A running `twinlock dev`: its process, and the home in which it keeps everything."""

    process: subprocess.Popen
    home: Path
    greeting: str

    @property
    def url(self) -> str:
        """Where it listens."""
        return parse_address(re.search(r"listening on (\S+),", self.greeting)[1]).origin

    @property
    def kit(self) -> str:
        """The recovery kit of the demo account, shown at the first start only."""
        return re.search(r"recovery\s+(\S+)", self.greeting)[1]

    @property
    def profile(self) -> Path:
        """The profile that `connect()` finds by itself."""
        return self.home / "data" / "twinlock" / "dev" / "profile"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a person whose home this is."""
        return environment_of(self.home)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run a `twinlock` command beside this server."""
        return run_twinlock(self.environment, *arguments)

    def stop(self) -> int:
        """End it as Ctrl-C would, and return its status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=15)


def environment_of(home: Path) -> dict[str, str]:
    """Return an environment in which nothing of this machine's user is found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TWINLOCK_")}
    # A keyring of this machine must neither be asked nor written to.
    backend = "keyring.backends.null.Keyring"
    return {**kept, "HOME": str(home), "XDG_DATA_HOME": str(home / "data"), "PYTHON_KEYRING_BACKEND": backend}


def run_twinlock(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    """Run a `twinlock` command to its end."""
    command = [sys.executable, "-m", "twinlock", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def start_dev(home: Path, port: int, *options: str) -> DevServer:
    """Start `twinlock dev` and return when it has said all it has to say."""
    command = [sys.executable, "-m", "twinlock", "dev", "--port", str(port), *options]
    log = home / "dev.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment_of(home), stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + START_SECONDS_MAX
    while "Ctrl-C ends it" not in (greeting := log.read_text(encoding="utf-8")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise AssertionError(greeting)
        time.sleep(0.05)
    return DevServer(process, home, greeting)
