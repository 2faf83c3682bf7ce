"""The alerts and the dashboard ask for figures that exist, and every alert leads to a section of the page on call."""

import asyncio
import datetime
import json
import re
import shutil
import subprocess

import httpx
import pytest
import yaml

from tests.deploy.cluster_kit import DEPLOY
from tests.docs.test_docs_pages import anchors_of
from twinlock.cli.cluster_facts import ClusterFacts, MirrorFacts, ReplicaFacts, ServerFacts, StreamFacts
from twinlock.cli.cluster_metrics import ClusterMetrics
from twinlock.keyservice.metrics import KeyServiceMetrics
from twinlock.server import Server
from twinlock.server.settings import Settings

ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "twinlock.json"
NAME = re.compile(r"(?<![\w{\"])twinlock_\w+")
PROMETHEUS_OWN = {"up"}


def rules():
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def figures_in(text):
    """Return the names of all figures that a page of metrics shows or describes."""
    shown = set(re.findall(r"^(\w+)[ {]", text, re.MULTILINE))
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        # Counters with labels show nothing before the first is counted.
        shown |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"} if kind == "histogram" else {name}
    return shown


async def page_of_a_server():
    server = Server(Settings(engine="memory:", port=0))
    await server.start()
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{server.port}/metrics")).text
    finally:
        await server.stop()


@pytest.fixture(scope="module")
def figures():
    page = asyncio.run(page_of_a_server())
    watched = ClusterMetrics()
    watched.backup_s = 1.0
    ends = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
    seen = ServerFacts(
        name="a",
        version="2.15.1",
        jetstream=True,
        sync_always=True,
        max_payload=8 << 20,
        clock_offset_s=0.1,
        clock_error_s=0.0,
        certificate_ends=ends,
        storage_bytes=1,
        storage_max_bytes=2,
    )
    stream = StreamFacts(
        name="TW_0000",
        messages=1,
        bytes=1,
        last_seq=1,
        subjects_count=1,
        replicas=3,
        leader="a",
        followers=[ReplicaFacts("b", True, False, 0)],
        subjects=["tw.0000.*"],
        mirror=MirrorFacts(1, 1.0, ""),
    )
    watched.facts = ClusterFacts([seen], [stream])
    pages = (page, KeyServiceMetrics().render().decode(), watched.render().decode())
    return set().union(*map(figures_in, pages)) | PROMETHEUS_OWN


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_figures_that_exist(rule, figures):
    asked = set(NAME.findall(rule["expr"]))

    assert asked - figures == set()
    assert asked or "up{" in rule["expr"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do_about_it(rule):
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    page = (DEPLOY.parent / path).read_text(encoding="utf-8")

    assert anchor in anchors_of(page)
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["alert"] in page, "the page names the alert, so that it is found by searching"


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_asks_for_figures_that_exist(panel, figures):
    asked = {name for target in panel["targets"] for name in NAME.findall(target["expr"])}

    assert asked
    assert asked - figures == set()


def test_what_no_server_says_is_rung_for_shown_and_explained():
    asked = {name for panel in panels() for target in panel["targets"] for name in NAME.findall(target["expr"])}
    (rule,) = (rule for rule in rules() if "twinlock_news_refused_total" in rule["expr"])
    page = (DEPLOY.parent / "docs" / "operate" / "on-call.md").read_text(encoding="utf-8")
    engine = (DEPLOY.parent / "src" / "twinlock" / "engines" / "jetstream_live.py").read_text(encoding="utf-8")

    assert rule["alert"] in page
    assert "twinlock_news_refused_total" in asked
    assert all("a log holds what is no message" in text for text in (page, engine))


def test_every_job_of_the_alerts_is_asked_for():
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    named = {name for rule in rules() for name in re.findall(r'job="([^"]+)"', rule["expr"])}

    assert named <= {job["job_name"] for job in jobs}


@pytest.mark.parametrize("what", [["rules", "alerts.yml"], ["config", "--syntax-only", "prometheus.yml"]], ids="-".join)
def test_prometheus_takes_it(what):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run([promtool, "check", *what], cwd=ALERTS.parent, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
