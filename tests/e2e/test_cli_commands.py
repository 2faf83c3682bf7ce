"""The command line as a person uses it, against a real `twinlock dev`."""

import json
import socket
import stat
import subprocess
import sys

import pytest

from tests.e2e.dev_server import environment_of, run_twinlock, start_dev

pytestmark = pytest.mark.e2e


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    server = start_dev(tmp_path_factory.mktemp("home"), free_port())
    yield server
    if server.process.poll() is None:
        server.stop()


def test_dev_tells_where_it_listens_and_what_to_do_next(dev):
    assert dev.url in dev.greeting
    assert str(dev.profile) in dev.greeting
    assert len(dev.kit.replace("-", "")) == 28
    assert "twinlock put home/todos/1" in dev.greeting


def test_put_and_get_find_the_dev_profile_by_themselves(dev):
    written = dev.run("put", "home/todos/milk", '{"text": "milk", "done": false}')
    read = dev.run("get", "home/todos/milk")

    assert (written.returncode, read.returncode) == (0, 0), written.stderr + read.stderr
    assert json.loads(read.stdout) == {"text": "milk", "done": False}


def test_put_with_merge_keeps_the_other_fields(dev):
    dev.run("put", "home/todos/bread", '{"text": "bread", "done": false}')
    dev.run("put", "home/todos/bread", '{"done": true}', "--merge")

    assert json.loads(dev.run("get", "home/todos/bread").stdout) == {"text": "bread", "done": True}


def test_query_prints_the_documents_that_fit_one_a_line(dev):
    for number in range(3):
        dev.run("put", f"home/numbers/{number}", json.dumps({"n": number}), "--offline")

    found = dev.run("query", "home/numbers", "--where", "n >= 1", "--order-by", "-n")

    assert [json.loads(line) for line in found.stdout.splitlines()] == [{"id": "2", "n": 2}, {"id": "1", "n": 1}]


def test_watch_on_the_second_device_sees_what_the_first_one_writes(dev):
    second = str(dev.profile.with_name("profile-2"))
    command = [sys.executable, "-m", "twinlock", "watch", "home/live", "--count", "1", "--profile", second]
    with subprocess.Popen(command, env=dev.environment, stdout=subprocess.PIPE, text=True) as watching:
        dev.run("put", "home/live/1", '{"seen": true}')
        output, _ = watching.communicate(timeout=30)

    assert json.loads(output) == {"change": "added", "id": "1", "data": {"seen": True}}


def test_a_missing_document_is_an_error_with_a_remedy(dev):
    missing = dev.run("get", "home/todos/nothing")

    assert missing.returncode == 1
    assert missing.stderr.startswith("not_found")
    assert "→" in missing.stderr


def test_an_unknown_space_is_an_error_with_its_code(dev):
    unknown = dev.run("get", "nowhere/todos/1")

    assert unknown.returncode == 1
    assert "unknown_space" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("put", "home/todos/1", "{not json"), "not_json"),
        (("put", "home/todos/1", "[1]"), "not_an_object"),
        (("get", "home/todos"), "bad_path"),
        (("query", "home"), "bad_path"),
        (("query", "home/todos", "-w", "done"), "bad_condition"),
        (("dev", "--port", "65536"), "Usage"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_opened(tmp_path, arguments, code):
    wrong = run_twinlock(environment_of(tmp_path), *arguments)

    assert wrong.returncode == 2
    assert wrong.stderr.startswith(code)


def test_without_a_profile_the_command_says_how_to_get_one(tmp_path):
    missing = run_twinlock(environment_of(tmp_path), "get", "home/todos/1")

    assert missing.returncode == 1
    assert "profile_missing" in missing.stderr
    assert "twinlock dev" in missing.stderr


@pytest.mark.parametrize("command", [("dev", "--folder"), ("pair", "ws://127.0.0.1:9", "--profile")])
def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path, command):
    file = tmp_path / "file"
    file.write_text("not a folder")

    refused = run_twinlock(environment_of(tmp_path), *command, str(file))

    assert refused.returncode == 1
    assert refused.stderr.startswith(("file_failed", "store_failed"))
    assert str(file) in refused.stderr
    assert "→" in refused.stderr


def test_who_has_read_enough_of_the_output_ends_the_command_quietly(dev):
    dev.run("put", "home/much/1", json.dumps({"text": "x" * 100_000}))
    command = [sys.executable, "-m", "twinlock", "get", "home/much/1"]
    with subprocess.Popen(command, env=dev.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as getting:
        getting.stdout.read(1)
        getting.stdout.close()
        said = getting.stderr.read()

    assert b"Traceback" not in said
    assert b"Broken pipe" not in said


def test_a_profile_opens_in_one_process_at_a_time(dev):
    dev.run("put", "home/held/1", "{}", "--offline")
    command = [sys.executable, "-m", "twinlock", "watch", "home/held"]
    with subprocess.Popen(command, env=dev.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        try:
            # What it prints shows that it has the profile open.
            watching.stdout.readline()
            refused = dev.run("get", "home/held/1")
        finally:
            watching.terminate()
            watching.communicate(timeout=15)

    assert refused.returncode == 1
    assert "profile_in_use" in refused.stderr


def test_watch_says_when_the_server_goes_and_comes_back(tmp_path):
    port = free_port()
    server = start_dev(tmp_path, port)
    command = [sys.executable, "-m", "twinlock", "watch", "home/todos", "--count", "2"]
    environment = server.environment
    server.run("put", "home/todos/1", "{}")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        watch.stdout.readline()
        server.stop()
        gone = watch.stderr.readline()
        server = start_dev(tmp_path, port)
        back = watch.stderr.readline()
        second = str(server.profile.with_name("profile-2"))
        server.run("put", "home/todos/2", "{}", "--profile", second)
        output, _ = watch.communicate(timeout=30)
    server.stop()

    assert [gone.strip(), back.strip()] == ["reconnecting", "connected"]
    assert [json.loads(line)["id"] for line in output.splitlines()] == ["2"]


def test_inspect_shows_a_profile_and_what_little_a_server_knows(dev):
    dev.run("put", "home/todos/milk", '{"text": "milk"}')

    profile = dev.run("inspect", str(dev.profile))
    server = dev.run("inspect", str(dev.profile.parent / "server"))

    assert "home" in profile.stdout
    assert "demo" in profile.stdout
    assert server.returncode == 0
    assert "home" not in server.stdout.replace(str(dev.home), "")
    assert "milk" not in server.stdout


def test_doctor_is_content_with_a_fresh_profile_and_not_with_an_open_key_file(dev):
    content = dev.run("doctor", "--profile", str(dev.profile))
    key = next(dev.profile.glob("*key*"))
    key.chmod(0o644)
    worried = dev.run("doctor", "--profile", str(dev.profile))
    key.chmod(stat.S_IRUSR | stat.S_IWUSR)

    assert content.returncode == 0, content.stdout
    assert worried.returncode == 1
    assert f"chmod 600 {key}" in worried.stdout


def test_doctor_names_a_setting_that_is_wrong(tmp_path):
    config = tmp_path / "twinlock.toml"
    config.write_text("porf = 1\n", encoding="utf-8")

    found = run_twinlock(environment_of(tmp_path), "doctor", "--config", str(config))

    assert found.returncode == 1
    assert "porf" in found.stdout


def test_serve_refuses_wrong_settings_with_a_remedy(tmp_path):
    refused = run_twinlock(environment_of(tmp_path), "serve", "--host", "0.0.0.0")

    assert refused.returncode == 2
    assert "tls_certificate" in refused.stderr


def test_a_second_dev_on_the_same_port_says_so(dev, tmp_path):
    port = dev.url.rpartition(":")[2]

    refused = run_twinlock(environment_of(tmp_path), "dev", "--port", port)

    assert refused.returncode == 1
    assert "port_in_use" in refused.stderr


def test_bench_measures_a_server_of_its_own(tmp_path):
    measured = run_twinlock(environment_of(tmp_path), "bench", "--writes", "10")

    assert measured.returncode == 0, measured.stderr
    assert "durable writes/s" in measured.stdout


@pytest.mark.parametrize("missing", ["uvicorn", "litestar"])
def test_put_needs_no_server_packages_and_dev_says_what_to_install(dev, missing):
    # A package that is not there is one whose import fails: `None` in sys.modules is Python's own way to say so.
    hide = f"import sys; sys.modules[{missing!r}] = None; "
    program = hide + "from twinlock.cli.main import app; app()"

    written = subprocess.run(
        [sys.executable, "-c", program, "put", "home/todos/lean", '{"text": "lean"}'],
        env=dev.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    refused = subprocess.run(
        [sys.executable, "-c", program, "dev"], env=dev.environment, capture_output=True, text=True, check=False
    )

    assert written.returncode == 0, written.stderr
    assert refused.returncode == 2
    assert missing in refused.stderr
    assert "pip install 'twinlock[server]'" in refused.stderr


def test_dev_keeps_its_data_and_ends_quietly(tmp_path):
    port = free_port()
    first = start_dev(tmp_path, port)
    first.run("put", "home/todos/kept", '{"text": "kept"}')
    status = first.stop()
    moved = run_twinlock(environment_of(tmp_path), "dev", "--port", str(free_port()))
    again = start_dev(tmp_path, port)
    try:
        read = again.run("get", "home/todos/kept")
    finally:
        again.stop()

    assert status == 0
    assert moved.returncode == 1
    assert f"dial port {port}" in moved.stderr
    assert "recovery" not in again.greeting
    assert json.loads(read.stdout) == {"text": "kept"}


def test_without_its_own_packages_the_command_says_what_to_install(tmp_path):
    program = "import sys; sys.modules['typer'] = None; from twinlock.cli.main import app; app()"

    refused = subprocess.run(
        [sys.executable, "-c", program], env=environment_of(tmp_path), capture_output=True, text=True, check=False
    )

    assert refused.returncode == 2
    assert "needs typer" in refused.stderr
    assert "pip install 'twinlock[cli]'" in refused.stderr
