"""Make the keys, folders and `.env` that `deploy/compose.yml` needs for a trial on one machine, in `deploy/trial/`.

    python deploy/prepare_trial.py && docker compose -f deploy/compose.yml up --build

Needs Twinlock with its server parts in this Python. What exists stays as it is. In production no machine has all of
these keys: see docs/operate/cluster.md.
"""

import json
import os
import secrets
import shutil
import sys
from pathlib import Path

from twinlock.cli.cluster_authority import write_secret
from twinlock.cli.cluster_keys import Members, ServerPlace, make_keys, read_members
from twinlock.keyservice.key_files import NODE_KEY_NAME, SERVICE_KEY_NAME, open_signing_key, public_key_text
from twinlock.server.secrets_file import FILE_NAME, open_secrets

HERE = Path(__file__).parent
SERVERS = ("nats-1", "nats-2", "nats-3")
NODES = ("sync-1", "sync-2")
OTHERS = ("keyservice", "openbao", "prometheus")


def main(folder: Path = HERE / "trial") -> int:
    """Make what is missing."""
    keys, data = folder / "keys", folder / "data"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = read_members(keys)
    members = Members(
        site="trial",
        servers={name: ServerPlace(name) for name in SERVERS},
        nodes={name: known.nodes.get(name, "") for name in NODES},
        hosts={name: name for name in (*NODES, *OTHERS)},
    )
    make_keys(keys, members)
    for name in (*SERVERS, *NODES, "keyservice", "openbao", "seaweedfs", "prometheus", "grafana"):
        (data / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    node_keys = introduce(data)
    write_bucket_keys(keys / "seaweedfs")
    service_pk = public_key_text(open_signing_key(data / "keyservice" / SERVICE_KEY_NAME))
    lines = {
        "TWINLOCK_UID": os.getuid(),
        "TWINLOCK_GID": os.getgid(),
        "KEYSERVICE_PK": service_pk,
        "KEYSERVICE_NODES": ",".join(node_keys),
    }
    # Docker Compose reads `.env` beside compose.yml by itself.
    (folder.parent / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    print(f"{folder} is ready: docker compose -f deploy/compose.yml up --build")
    return 0


def introduce(data: Path) -> list[str]:
    """Give every node its own key for the key service, and all of them one identity; return the public keys."""
    first = data / NODES[0]
    open_secrets(first)
    for name in NODES[1:]:
        if not (data / name / FILE_NAME).exists():
            shutil.copy2(first / FILE_NAME, data / name / FILE_NAME)
    return [public_key_text(open_signing_key(data / name / NODE_KEY_NAME)) for name in NODES]


def write_bucket_keys(folder: Path) -> None:
    """Make the credentials of the object store, for it and for those who use it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if (folder / "s3.json").exists():
        return
    access, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    identity = {
        "name": "twinlock",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        # No more than the one bucket, which is made at the first start.
        "actions": ["Admin:twinlock", "Read:twinlock", "Write:twinlock", "List:twinlock"],
    }
    write_secret(folder / "s3.json", json.dumps({"identities": [identity]}, indent=2).encode())
    write_secret(folder / "aws.env", f"AWS_ACCESS_KEY_ID={access}\nAWS_SECRET_ACCESS_KEY={secret}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
