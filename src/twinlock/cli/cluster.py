"""`twinlock cluster`: the keys, partitions and second site of a cluster on NATS JetStream."""

from __future__ import annotations

import typer

from twinlock.cli.cluster_keys import keys, link
from twinlock.cli.cluster_mirror import mirror, promote
from twinlock.cli.cluster_partitions import close_partitions, init, open_partitions, status
from twinlock.cli.cluster_watch import watch

cluster = typer.Typer(name="cluster", help="Set up and look after a cluster on NATS JetStream.", no_args_is_help=True)
for command in (keys, link, init, status, watch, mirror, promote):
    cluster.command()(command)
cluster.command("open-partitions")(open_partitions)
cluster.command("close-partitions")(close_partitions)
