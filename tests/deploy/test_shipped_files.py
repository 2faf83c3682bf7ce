"""The image, the compose file, the units and the trial: what can be checked of them without a container engine."""

import asyncio
import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import venv

import pytest
import yaml
from typer.main import get_command

from tests.deploy.cluster_kit import DEPLOY
from tests.openbao_kit import policy_of
from twinlock.cli.commands import commands
from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text
from twinlock.keyservice.settings import load_process_settings
from twinlock.server import Server, Settings
from twinlock.server.settings import load_settings
from twinlock.testing.traffic_tap import LOOPBACK, free_port

ROOT = DEPLOY.parent
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMMANDS = get_command(commands)
EXPOSURE_MAX = 20
"""Of 100, as `systemd-analyze security` counts; 95 is a unit that says nothing."""


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unit_values(path, name):
    return re.findall(rf"^{name}=(.*)$", path.read_text(), re.MULTILINE)


def instructions():
    """Return the instructions of the Dockerfile, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def compose():
    return yaml.safe_load((DEPLOY / "compose.yml").read_text())


def takes(arguments):
    """Tell whether our command knows this sub-command and these options."""
    place, is_command = COMMANDS, False
    for word in arguments:
        if not word.startswith("-") and word in getattr(place, "commands", {}):
            place, is_command = place.commands[word], True
    known = {option for parameter in place.params for option in parameter.opts}
    return is_command and {word for word in arguments if word.startswith("--")} <= known


# Units


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_runs_as_a_user_of_its_own_and_calls_what_exists(unit):
    (user,) = unit_values(unit, "User")
    made = re.findall(r"^u ([\w-]+)", (DEPLOY / "systemd" / "twinlock.sysusers").read_text(), re.MULTILINE)
    (start,) = unit_values(unit, "ExecStart")
    program, *arguments = shlex.split(start)

    assert user in made
    assert unit_values(unit, "NoNewPrivileges") == ["yes"]
    assert unit_values(unit, "ProtectSystem") == ["strict"]
    assert program.endswith(("/nats-server", "/litestream")) or takes(arguments)


def test_the_key_service_and_the_server_cannot_read_one_another():
    server, keys = (DEPLOY / "systemd" / f"{name}.service" for name in ("twinlock", "twinlock-keyservice"))

    assert unit_values(server, "User") != unit_values(keys, "User")
    assert "-/var/lib/twinlock-keyservice" in unit_values(server, "InaccessiblePaths")[0].split()
    assert "-/var/lib/twinlock" in unit_values(keys, "InaccessiblePaths")[0].split()
    assert unit_values(server, "StateDirectoryMode") == unit_values(keys, "StateDirectoryMode") == ["0700"]


def test_systemd_takes_the_units_and_finds_them_hardened(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in (*UNITS, *(DEPLOY / "systemd").glob("*.timer")):
        # The programs are not installed here.
        text = re.sub(r"^(Exec\w+=)\S+", r"\1/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)
    limit = f"--threshold={EXPOSURE_MAX}"
    services = [file for file in files if file.endswith(".service")]
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", limit, *services]
    rated = subprocess.run(command, capture_output=True, text=True)

    assert (verified.returncode, verified.stderr) == (0, "")
    assert rated.returncode == 0, rated.stdout[-1500:]


# The image


def test_the_image_is_built_in_stages_and_runs_without_rights():
    kinds = [kind for kind, _ in instructions()]
    last = dict(instructions()[len(kinds) - kinds[::-1].index("FROM") - 1 :])

    assert kinds.count("FROM") == 2
    assert all(
        re.fullmatch(r"python:3\.\d+-slim-\w+( AS \w+)?", what) for kind, what in instructions() if kind == "FROM"
    )
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    assert "ADD" not in kinds
    assert last["HEALTHCHECK"].endswith('CMD ["python", "/opt/twinlock/healthcheck.py"]')
    assert json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"]) == ["twinlock", "serve"]


def test_the_image_is_made_of_files_that_a_builder_gets():
    sent = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        name for kind, what in instructions() if kind == "COPY" and "--from" not in what for name in what.split()[:-1]
    ]

    assert copied
    assert all(name.removeprefix("./") in sent and (ROOT / name).exists() for name in copied)


async def test_the_health_check_tells_a_server_that_serves_from_none():
    server = Server(Settings(engine="memory:", port=0))
    await server.start()
    served = await run_health_check(f"http://{LOOPBACK}:{server.port}/readyz")
    await server.stop()
    gone = await run_health_check(f"http://{LOOPBACK}:{free_port()}/readyz")

    assert (served, gone) == (0, 1)


async def run_health_check(url):
    environment = {**os.environ, "TWINLOCK_HEALTH_URL": url}
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(DEPLOY / "healthcheck.py"), env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    return await child.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_image_s_own_install_step_gives_a_command_that_runs(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("constraints.txt", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (install,) = [shlex.split(what) for kind, what in instructions() if kind == "RUN" and what.startswith("pip ")]
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv" / "bin"
    subprocess.run([bin_folder / "python", "-m", *install], cwd=source, check=True, capture_output=True)
    shown = subprocess.run([bin_folder / "twinlock", "serve", "--help"], check=True, capture_output=True, text=True)

    assert "--config" in shown.stdout


# The trial


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy") / "trial"
    load_script("prepare_trial").main(folder)
    return folder


def environment_of(trial):
    return dict(line.split("=", 1) for line in (trial.parent / ".env").read_text().splitlines())


def test_the_trial_s_machines_know_one_another_and_keep_their_keys(trial):
    node_pks = environment_of(trial)["KEYSERVICE_NODES"].split(",")
    own = [public_key_text(open_signing_key(trial / "data" / name / NODE_KEY_NAME)) for name in ("sync-1", "sync-2")]
    identities = {(trial / "data" / name / "server.key").read_bytes() for name in ("sync-1", "sync-2")}
    secret = [
        path for path in trial.rglob("*") if path.suffix in (".key", ".nk") or path.name in ("s3.json", "aws.env")
    ]

    assert node_pks == own
    assert len(identities) == 1
    assert len(secret) >= 15
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secret)


def test_a_trial_is_prepared_twice_without_a_change(trial):
    files = [path for path in trial.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    load_script("prepare_trial").main(trial)

    assert {path: path.read_bytes() for path in before} == before


def test_compose_mounts_what_is_there_and_nobody_s_keys_but_one_s_own(trial):
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            place = trial.parent / source if source.startswith("./trial") else DEPLOY / source
            assert place.exists(), source
            if source.startswith("./trial/keys/"):
                owner = source.split("/")[3]
                assert owner == name or (owner, name) in {("operator", "cluster-init"), ("operator", "watch")}
                assert mode == ["ro"]
            if name == "watch":
                assert not target.endswith("admin.nk")


def test_every_container_is_hardened_pinned_and_reached_from_this_machine_only():
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].startswith("${TWINLOCK_UID}"), name
        assert service["image"] == "twinlock" or re.search(r":v?\d+\.\d+", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    networks = compose()["networks"]
    assert compose()["services"]["keyservice"]["networks"] == ["keys"]
    assert all((networks[name] or {}).get("internal") for name in ("cluster", "keys", "watching"))


def test_compose_gives_servers_and_key_service_settings_that_they_take(trial):
    chosen = environment_of(trial)

    def filled(service):
        values = {key: str(value) for key, value in compose()["services"][service]["environment"].items()}
        return {key: re.sub(r"\$\{(\w+)\}", lambda name: chosen[name[1]], value) for key, value in values.items()}

    server, keys = filled("sync-1"), filled("keyservice")
    known = {f"TWINLOCK_{name.upper()}" for name in Settings.__struct_fields__} | {
        "TWINLOCK_HEALTH_URL",
        "TWINLOCK_HEALTH_CA",
    }
    settings = load_settings(None, server)
    key_settings = load_process_settings(None, keys).check()

    assert set(server) <= known
    assert settings.in_cluster
    assert settings.blobs.startswith("s3://")
    assert settings.keyservice_url.startswith("https://")
    assert len(key_settings.node_keys) == 2


def test_compose_calls_commands_that_exist():
    services = compose()["services"]

    assert takes(services["sync-1"]["command"])
    assert takes(services["keyservice"]["command"])
    assert takes(services["watch"]["command"])
    for line in services["cluster-init"]["command"][0].split("||"):
        assert takes(shlex.split(line.strip())[1:])


def test_openbao_s_policy_is_the_one_that_the_page_gives():
    shipped = (DEPLOY / "openbao" / "policy.hcl").read_text()

    assert re.sub(r"^#.*\n", "", shipped, flags=re.MULTILINE) == policy_of("twinlock")
