"""What `sync_interval: always` does in the NATS server that is installed, seen in its system calls."""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import time

import pytest

from tests.deploy.cluster_kit import ShippedCluster
from twinlock.contracts import Log
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.testing.contracts import Chain
from twinlock.testing.contracts.envelopes import new_space
from twinlock.testing.nats_process import NatsCluster

APPENDS = 40
SMALL = FirstSettings(partitions=1, shards=1)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"),
]


@contextlib.contextmanager
def traced(pid, path):
    """Write down a process's syncs of files while the block runs."""
    command = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(path), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    time.sleep(0.5)
    if tracer.poll() is not None:
        pytest.skip(f"no process may be traced here: {tracer.stderr.read().decode()}")
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        tracer.stderr.close()


async def append_one_by_one(log: Log):
    chain = Chain(new_space())
    for _ in range(APPENDS):
        await log.append(chain.space, chain.take(1), time.time_ns() // 1_000_000)


def syncs_in(path):
    return sum("sync(" in line for line in path.read_text().splitlines())


async def test_each_append_is_synced_on_a_server_with_the_shipped_configuration(tmp_path):
    with ShippedCluster(tmp_path, 1) as cluster:
        admin = cluster.options(cluster.seed_of("operator", "admin.nk"))
        engine = await JetstreamEngine.connect("", admin, first=SMALL)
        with traced(cluster.nodes[0].pid, tmp_path / "trace"):
            await append_one_by_one(engine.log)
        await engine.close()

    assert syncs_in(tmp_path / "trace") >= APPENDS


async def test_each_append_is_synced_on_a_majority_of_three_servers(tmp_path):
    traces = [tmp_path / f"trace-{place}" for place in range(3)]
    with ShippedCluster(tmp_path, 3) as cluster:
        admin = cluster.options(cluster.seed_of("operator", "admin.nk"))
        engine = await JetstreamEngine.connect("", admin, first=SMALL)
        with contextlib.ExitStack() as stack:
            for node, path in zip(cluster.nodes, traces, strict=True):
                stack.enter_context(traced(node.pid, path))
            await append_one_by_one(engine.log)
            # The slowest one may still be at it.
            await asyncio.sleep(1)
        await engine.close()

    assert sum(syncs_in(path) >= APPENDS for path in traces) >= 2


async def test_the_default_acknowledges_what_is_not_on_the_disk(tmp_path):
    """Why the setting is needed; were this to change, the pages would have to."""
    lazy = {"jetstream": f'{{ store_dir: "{tmp_path}/store" }}'}
    with NatsCluster(tmp_path, 1, settings=lazy) as cluster:
        engine = await JetstreamEngine.connect(cluster.url, first=SMALL)
        with traced(cluster.nodes[0].pid, tmp_path / "trace"):
            await append_one_by_one(engine.log)
        await engine.close()

    assert syncs_in(tmp_path / "trace") < APPENDS // 4
