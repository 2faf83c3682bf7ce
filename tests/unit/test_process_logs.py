"""The logs of a process: one JSON object a line, whoever writes it."""

import json
import subprocess
import sys

SCRIPT = """
import logging
import structlog
from twinlock.process import configure_logs
configure_logs("info")
structlog.get_logger().info("ours", port=1)
logging.getLogger("engine").warning("theirs", extra={"detail": "why"})
logging.getLogger("engine").info("too much")
"""


def test_what_libraries_and_engines_log_has_its_details_in_the_form_of_our_own_lines():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)

    ours, theirs = (json.loads(line) for line in done.stderr.splitlines())
    assert (ours["message"], ours["level"], ours["port"]) == ("ours", "info", 1)
    assert (theirs["message"], theirs["level"], theirs["logger"]) == ("theirs", "warning", "engine")
    assert theirs["detail"] == "why"
    assert ours.keys() - theirs.keys() == {"port"}
