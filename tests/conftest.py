"""What the tests share: tiny checkpoints, the real SmolLM2, the emulated ARM machine, the CLI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from coverage import Coverage
from hypothesis import HealthCheck, settings

from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.source import resolve_model
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.run.weights import MODELS
from edgeprune.target.target import LOCAL, Target, load_target
from tests import forked
from tests.arm import machine as arm
from tests.kept import kept
from tests.sshd import LACKING, Relay, Server, is_installed, serve
from tests.tiny import KINDS, make_tiny
from tests.turns import (
    RUN,
    once,
    pytest_collection_modifyitems,
    pytest_runtest_protocol,
    pytest_xdist_make_scheduler,
)

__all__ = [
    "pytest_collection_modifyitems", "pytest_runtest_protocol", "pytest_xdist_make_scheduler"]

ROOT = Path(__file__).parent.parent
PROFILES, TARGETS = "EDGEPRUNE_TEST_PROFILES", "EDGEPRUNE_TEST_TARGETS"
COUNTED = ROOT / ".coverage"
Cli = Callable[..., subprocess.CompletedProcess[str]]
# how long an example takes says how busy the machine is
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session", params=list(KINDS))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a tiny random Llama of each kind."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / request.param, request.param)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Give the checkpoint directory of the real SmolLM2-135M-Instruct."""
    return resolve_model("smollm2")[1]


@pytest.fixture(scope="session")
def smollm2_profiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a directory of profiles with the scores of SmolLM2's cuts, which take 90 s.

    What makes them is `small`'s every time; SmolLM2's are kept while nothing of it changes.
    """
    own = tmp_path_factory.getbasetemp()
    profiles = (own if RUN is None else own.parent) / "smollm2-profiles"
    with kept(profiles / MODELS, "test-scores", ("run/cutting.py", "data", "model", "pruning"),
              versions=(torch.__version__,), without=("statistics",)):
        yield profiles


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a random Llama with a tokenizer, small enough to run the whole way in seconds.

    Its rows are multiples of 256, so that nothing falls back from the K-quants. Its tokenizer is
    there for llama.cpp, too: to convert it takes each run four seconds.
    """
    made = make_tiny(
        tmp_path_factory.mktemp("small") / "small", tokenizer=True, hidden_size=256,
        intermediate_size=512, num_hidden_layers=6, head_dim=64, initializer_range=0.02,
    )
    tokenizer_of(made, made / "tokenizer.gguf")
    return made


@pytest.fixture(scope="session")
def gguf_file(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give `small` as a GGUF file."""
    file = tmp_path_factory.mktemp("gguf") / "small.gguf"
    export_gguf(Checkpoint(small), None, file, quant="Q4_K_M", name="small")
    return file


@pytest.fixture(scope="session")
def spoken_file(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give `small` as a GGUF file with its tokenizer, `a.gguf`."""
    directory = tmp_path_factory.mktemp("spoken")
    tokenizer = tokenizer_of(small, directory / "tokenizer.gguf")
    export_gguf(Checkpoint(small), tokenizer, directory / "a.gguf", quant="Q4_0", name="small")
    return directory / "a.gguf"


@pytest.fixture(scope="session")
def arm_target() -> Iterator[Target]:
    """Boot the emulated ARM machine, and stop it at the end unless it was running before."""
    if (lacking := arm.lacking()) and "CI" not in os.environ:
        pytest.skip(lacking)
    with arm.boot(arm.build()):
        yield load_target("qemu-arm64", ROOT / "targets")


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a real sshd on this machine, with keys of its own."""
    if not is_installed() and "CI" not in os.environ:
        pytest.skip(LACKING)
    with serve(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def relay(sshd: Server) -> Iterator[Relay]:
    """Give a relay in front of the sshd, which breaks connections when it is told to."""
    with Relay(sshd.port) as relay:
        sshd.trusts(relay.port)
        yield relay


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Give a function that runs the command line as a user would, in a directory of its own."""
    return partial(run_cli, tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Let torch count on one thread: two wait for each other on tensors as small as the tests'."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _forked() -> None:
    """Have the libraries of commands loaded, before any test changes the environment."""
    forked.start()


@pytest.fixture(scope="session", autouse=True)
def _profiles(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _forked: None
) -> None:
    """Keep profiles for all tests of all processes: each model is profiled once.

    That of `small` first of all, before anything that would disturb it: disturbed, each run would
    make it again.
    """
    own = tmp_path_factory.getbasetemp()
    kept = (own if RUN is None else own.parent) / "profiles"
    kept.mkdir(exist_ok=True)
    os.environ[PROFILES] = str(kept)
    # of two jobs on a target the second is refused: each process has a `local` of its own; several
    # threads of models as small as the tests' wait for each other most of the time
    targets = own / "targets"
    targets.mkdir()
    (targets / "local.toml").write_text(
        f"work_directory = {json.dumps(str(own / LOCAL))}\nthreads = 1\n")
    os.environ[TARGETS] = str(targets)
    if any("_profiled" in item.fixturenames for item in request.session.items
           if isinstance(item, pytest.Function)):
        request.getfixturevalue("_profiled")


@pytest.fixture(scope="session")
def _profiled(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Profile `small`."""
    with once("profiled") as first:
        if first:
            done = run_cli(tmp_path_factory.mktemp("profiled"), "profile", str(small), "--target",
                           "local", "--profiles", os.environ[PROFILES])
            assert done.returncode == 0, done.stderr


def run_cli(
    directory: Path, *arguments: str, timeout_s: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in a directory.

    It is forked off a process that has loaded the libraries, where nothing of the environment
    changed that they look at.
    """
    environment = {**os.environ, "COLUMNS": "200"}
    if forked.can_run():
        return forked.run(_completed(*arguments), directory, environment, timeout_s=timeout_s,
                          data=COUNTED if _is_counted(*arguments) else None)
    return subprocess.run(
        cli_argv(*arguments), cwd=directory, capture_output=True, text=True, check=False,
        timeout=timeout_s, env=environment,
    )


def cli_argv(*arguments: str) -> list[str]:
    """Return the command line of edgeprune with some arguments, counted by coverage if we are."""
    counted = ["-m", "coverage", "run", "--parallel-mode", f"--data-file={COUNTED}",
               f"--rcfile={ROOT / 'pyproject.toml'}"] if _is_counted(*arguments) else []
    return [sys.executable, *counted, "-m", "edgeprune.cli", *_completed(*arguments)]


def _is_counted(*arguments: str) -> bool:
    """Tell whether coverage counts what a command runs.

    Runs of the real model are not: they take minutes, and what they do is counted on small ones.
    """
    return Coverage.current() is not None and "smollm2" not in arguments


def _completed(*arguments: str) -> list[str]:
    """Add to a command's arguments what spares the tests time, where they do not say it."""
    asked = set(arguments)
    if LOCAL in asked and "--targets" not in asked:
        arguments = (*arguments, "--targets", os.environ[TARGETS])
    if {"run", "plan", "profile"} & asked and not {"--help", "--profile-seconds"} & asked:
        # a busy machine would take up all the time that profiles may
        arguments = (*arguments, "--profile-seconds", "60" if "smollm2" in asked else "3")
    if {"run", "plan"} & asked and "--help" not in asked:
        if "--profiles" not in asked:
            arguments = (*arguments, "--profiles", os.environ[PROFILES])
        if "--effort" not in asked:
            arguments = (*arguments, "--effort", "low")  # a third of the time that it takes
        if not {"smollm2", "--threads", LOCAL} & asked:
            arguments = (*arguments, "--threads", "1")
    return list(arguments)
