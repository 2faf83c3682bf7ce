"""The cluster's story holds: two devices at two nodes, and machines that die in the middle of counted writes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.e2e
def test_a_cluster_loses_a_nats_server_and_a_sync_node_and_no_change():
    command = [sys.executable, "-m", "demo.cluster", "--once", "--quakes", "200"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)

    assert told.returncode == 0, told.stdout + told.stderr
    assert "Every check passed" in told.stdout
    assert "✗" not in told.stdout
    assert "none lost: device C, new, finds 1,000 of 1,000 on what is left" in told.stdout
    assert "none twice: the counter says 1,000" in told.stdout
    assert "both were killed in the middle of it" in told.stdout
