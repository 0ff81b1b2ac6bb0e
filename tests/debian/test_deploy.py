"""Bundles on a Debian with real systemd: served, refused, rolled back, removed.

The tests build on one another: a machine that serves something is not put up in seconds.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from edgeprune.deploy.bundle import Serving, package
from edgeprune.deploy.served import served_of_artifact
from edgeprune.deploy.signing import own_key, sign
from edgeprune.target.probe import DeviceFacts
from edgeprune.target.session import open_device
from edgeprune.target.target import Target
from tests.cli.test_app import assert_one_line
from tests.conftest import Cli
from tests.debian.container import Container
from tests.host import require_free_port
from tests.service import SERVICE, describe

pytestmark = pytest.mark.debian

BUDGET = "16 tokens after 8 < 1 min, decode > 0.2 tokens/s, ram < 500 MB"  # however busy it is
TOO_FAST = "16 tokens after 8 < 1 min, decode > 9000 tokens/s"


@pytest.fixture(scope="module")
def targets(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Describe the machine as `root` and as `edge`, who may not install anything."""
    return describe(target, tmp_path_factory.mktemp("targets"))


@pytest.fixture(scope="module", autouse=True)
def _own_signing_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory in which bundles are made, for all tests of this module."""
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def facts(target: Target) -> DeviceFacts:
    with open_device(target) as device:
        return device.facts


@pytest.fixture(scope="module")
def service() -> str:
    """Give the address of the machine's service; the network is this computer's."""
    require_free_port(SERVICE)
    return f"http://127.0.0.1:{SERVICE}"


def _package(made: Path, artifact: Path, facts: DeviceFacts, budget: str = BUDGET) -> Path:
    """Make a bundle as the command does, which would look at the machine each time."""
    served = served_of_artifact(artifact, facts, 2, budget, None, None)
    package(served, Serving(), made, own_key(), version=made.name)
    return made


def _deploy(cli: Cli, targets: Path, bundle: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return cli("deploy", str(bundle), "--target", "root", "--targets", str(targets), *more)


def _status(cli: Cli, targets: Path) -> dict[str, Any]:
    done = cli("status", "--target", "root", "--targets", str(targets), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _ask(service: str, n_new: int = 4, timeout_s: float = 60) -> httpx.Response:
    return httpx.post(f"{service}/v1/completions", timeout=timeout_s, json={
        "prompt": f"At {time.time()}", "max_tokens": n_new, "temperature": 0})


def test_a_bundle_is_served_and_survives_a_reboot(
    cli: Cli, targets: Path, bundles: Path, spoken_file: Path, service: str, machine: Container
) -> None:
    first = bundles / "v1"
    done = cli("package", str(spoken_file), "--target", "root", "--targets", str(targets),
               "--budget", BUDGET, "--out", str(first), "--version", "v1")
    assert done.returncode == 0, done.stderr
    done = _deploy(cli, targets, first)
    assert done.returncode == 0, done.stderr
    assert "root serves version v1 at 127.0.0.1:8080" in done.stdout
    assert "tokens/s" in done.stdout
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}
    said = subprocess.run(
        ["curl", "--silent", "--show-error", "--no-buffer", "--retry", "20", "--retry-all-errors",
         f"{service}/v1/chat/completions", "--header", "content-type: application/json",
         "--data", json.dumps(body)], capture_output=True, text=True, check=True, timeout=300)
    events = [line[6:] for line in said.stdout.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[0])["object"] == "chat.completion.chunk"
    client = openai.OpenAI(base_url=f"{service}/v1", api_key="none", timeout=300)
    assert client.completions.create(model="a", prompt="One", max_tokens=3).choices
    assert "already" in _deploy(cli, targets, first).stdout

    # it is nobody's process but its own, and may reach nothing
    unit = "edgeprune-model-v1.service"
    shown = machine.run(f"systemctl show {unit} -p DynamicUser -p PrivateNetwork -p MemoryMax")
    assert set(shown.split()) == {"MemoryMax=500000000", "PrivateNetwork=yes", "DynamicUser=yes"}
    pid = machine.run(f"systemctl show {unit} -p MainPID --value").strip()
    assert machine.run(f"stat -c %U /proc/{pid}").strip() not in {"root", "edge"}

    machine.restart()
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            if _ask(service).status_code == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    status = _status(cli, targets)
    assert (status["version"], status["active"], status["model"]) == ("v1", True, "a")
    health = status["health"]
    assert health["uptime_s"] > 0
    assert health["tokens_per_s"] > 0
    assert health["peak_ram_bytes"] > 2**24
    shown = cli("status", "--target", "root", "--targets", str(targets)).stdout
    for part in ("a v1", "active", "uptime", "tokens/s", "MiB"):
        assert part in shown


def test_nobody_notices_a_version_that_is_refused_nor_one_that_takes_over(
    cli: Cli, targets: Path, bundles: Path, spoken_file: Path, service: str, machine: Container,
    facts: DeviceFacts,
) -> None:
    answers, stopped = list[tuple[int, str]](), threading.Event()

    def loop() -> None:
        while not stopped.wait(0.05):
            try:
                answers.append((_ask(service).status_code, ""))
            except httpx.HTTPError as error:
                answers.append((0, repr(error)))

    client = threading.Thread(target=loop)
    client.start()
    try:
        slow = _package(bundles / "v2", spoken_file, facts, TOO_FAST)
        assert_one_line(_deploy(cli, targets, slow), 10, "version v2 does not hold",
                        "9000 tokens/s was promised")
        assert _status(cli, targets)["version"] == "v1"
        assert "v2" not in machine.run("ls /opt/edgeprune/versions /etc/systemd/system", "root")
        better = _package(bundles / "v3", spoken_file, facts)
        done = _deploy(cli, targets, better)
        assert done.returncode == 0, done.stderr
        assert "version before: v1" in done.stdout
        # a version that serves no more takes no RAM
        running = ("systemctl list-units --plain --no-legend --state=active "
                   "'edgeprune-model-*.service' | cut -d ' ' -f 1")
        assert machine.run(running, "root").split() == ["edgeprune-model-v3.service"]
        for _ in range(3):
            answers.append((_ask(service).status_code, ""))
        assert cli("rollback", "--target", "root", "--targets", str(targets)).returncode == 0
        status = _status(cli, targets)
        assert (status["version"], status["previous"]) == ("v1", "v3")
        assert machine.run(running, "root").split() == ["edgeprune-model-v1.service"]
    finally:
        stopped.set()
        client.join()
    assert Counter(answers) == {(200, ""): len(answers)}
    assert len(answers) > 20


def test_what_is_damaged_or_not_for_this_machine_changes_nothing(
    cli: Cli, targets: Path, bundles: Path, spoken_file: Path, machine: Container,
    facts: DeviceFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    # every file with its size, every link with what it names; what came of attempts is kept
    listing = ("find /opt/edgeprune /etc/systemd/system -path '*/attempts' -prune -o "
               "! -type d -printf '%p %s %l\\n' | sort")
    before = machine.run(listing, "root")
    damaged = _package(bundles / "v4", spoken_file, facts)
    artifact = damaged / "artifact/a.gguf"
    data = bytearray(artifact.read_bytes())
    data[-1] ^= 1
    artifact.unlink()  # it is a link
    artifact.write_bytes(data)
    assert_one_line(_deploy(cli, targets, damaged), 10, "artifact/a.gguf", "damaged")

    manifest = damaged / "manifest.json"
    manifest.write_text(manifest.read_text().replace("v4", "v5"))
    assert_one_line(_deploy(cli, targets, damaged), 6, "signature")

    done = cli("deploy", str(bundles / "v1"), "--target", "edge", "--target", "root", "--targets",
               str(targets))
    assert done.returncode == 10
    assert "root" in done.stdout
    assert "not tried" in done.stdout
    assert "installed by" in done.stdout

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))  # somebody else's key
    other = _package(bundles / "v6", spoken_file, facts)
    assert_one_line(_deploy(cli, targets, other), 10, "not one of those that are trusted here")
    monkeypatch.undo()

    larger = _package(bundles / "v7", spoken_file, facts)
    foreign = bundles / "v8"
    shutil.copytree(larger, foreign)
    manifest = foreign / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{facts.architecture}"', '"riscv64"'))
    sign(manifest, own_key())
    assert_one_line(_deploy(cli, targets, foreign), 5, "another architecture", "riscv64",
                    facts.architecture)

    machine.run("fallocate -l $(($(stat -f -c '%a*%S' /) - 20000000)) /var/tmp/full", "root")
    try:
        # the target has its artifact already, under its content's name: nothing is left to send
        assert_one_line(_deploy(cli, targets, larger), 10, "not enough disk under /opt")
    finally:
        machine.run("rm /var/tmp/full", "root")
    assert machine.run(listing, "root") == before
    assert _status(cli, targets)["active"] is True


def test_eight_clients_get_answers_or_are_told_to_wait(
    cli: Cli, targets: Path, service: str
) -> None:
    deadline = time.monotonic() + 5

    def client(_: int) -> list[int]:
        found = []
        while time.monotonic() < deadline:
            found.append(_ask(service, 2).status_code)
        return found

    before = _status(cli, targets)["health"]["peak_ram_bytes"]
    with ThreadPoolExecutor(12) as clients:
        statuses = Counter(status for one in clients.map(client, range(12)) for status in one)
    assert set(statuses) <= {200, 503}
    assert statuses[200] > 5
    assert statuses[503] > 0  # one is answered, eight wait
    assert _status(cli, targets)["health"]["peak_ram_bytes"] < before + 2**25


def test_what_is_undeployed_is_gone(cli: Cli, targets: Path, machine: Container) -> None:
    done = cli("undeploy", "--target", "root", "--targets", str(targets))
    assert done.returncode == 0, done.stderr
    left = machine.run("find /opt /run/edgeprune /etc/systemd/system -name '*edgeprune*'; "
                       "pgrep -fa '[e]dgeprune.serving' || true", "root")
    assert left.split() == []
    assert _status(cli, targets)["version"] is None
    assert "nothing is served" in cli(
        "status", "--target", "root", "--targets", str(targets)).stdout
    assert_one_line(cli("rollback", "--target", "root", "--targets", str(targets)), 10,
                    "no version to go back to")
