"""The main job with this machine for itself: a verdict on a quiet machine, none on a busy one."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from transformers import AutoModelForCausalLM

from edgeprune.planning.greedy import Plan
from edgeprune.records import Verdict
from edgeprune.target.measurement import Comparison
from tests.conftest import Cli, cli_argv
from tests.run.test_pipeline import FEW, SIZE

pytestmark = pytest.mark.measures


def _run_until_quiet(cli: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run again, at most twice, what was disturbed, as the output then says."""
    done = cli(*arguments, timeout_s=1500)
    for _ in range(2):
        if done.returncode == Verdict.INCONCLUSIVE.exit_code:
            done = cli(*arguments, timeout_s=1500)
    return done


@pytest.mark.smollm2
@pytest.mark.timeout(1800)
def test_smollm2_runs_a_quarter_faster_measured(tmp_path: Path, smollm2_profiles: Path) -> None:
    """Until that is measured: what a run does afterwards needs no quiet machine."""
    run = tmp_path / "runs/r"
    arguments = ("run", "smollm2", "--target", "local", "--budget", "20 tokens < 75%", "--name",
                 "r", "--effort", "low", "--threads", "1", "--profile-seconds", "15",
                 "--profiles", str(smollm2_profiles))
    with (tmp_path / "said").open("w") as said:
        told = (tmp_path / "said").read_text
        process = subprocess.Popen(cli_argv(*arguments), cwd=tmp_path, stdout=said,
                                   stderr=subprocess.STDOUT)
        try:
            while not re.search(r"^round .*: (met|inconclusive)$", told(), re.MULTILINE):
                assert process.poll() is None, told()
                time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
    rounds = re.findall(r"^round \d+, pruned: .*: (\w+)$", told(), re.MULTILINE)
    pair = Comparison.read(run / f"rounds/{len(rounds)}/bench.json")
    ours, theirs = pair.pruned.request_latency_ms, pair.baseline.request_latency_ms
    assert len(ours) == len(theirs) >= 10
    share = median(mine / its for mine, its in zip(ours, theirs, strict=True))
    if rounds[-1] == "met":
        assert share <= 0.75
    else:  # something else used the machine
        assert rounds[-1] == "inconclusive"
        assert pair.disturbances or share == pytest.approx(0.75, rel=0.1)
    plan = Plan.read(run / f"rounds/{len(rounds)}/plan-{len(rounds)}.json")
    moves = [*(step.reason for step in plan.steps), *plan.refined]
    assert moves
    assert moves[0][:60] in told()
    assert plan.loss_increase > 0
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    left = sum(weight.numel() for weight in model.model.layers.parameters())
    assert left < 0.9 * 106_202_880  # those of the unpruned model's layers
    shutil.rmtree(tmp_path / "runs")


def test_a_loaded_machine_is_inconclusive_whatever_it_measures(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    """Keep one CPU busy from the outside; a budget that holds by far must not be called met."""
    arguments = ("run", str(small), *SIZE, *FEW)
    measured, outcome = tmp_path / "runs/r/rounds/1/bench.json", tmp_path / "runs/r/run.json"
    load = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        done = cli(*arguments)
    finally:
        load.kill()
        load.wait()
    assert done.returncode == Verdict.INCONCLUSIVE.exit_code, done.stdout + done.stderr
    assert json.loads(outcome.read_text())["verdict"] == "inconclusive"
    assert re.search(r"^round 1, pruned: .*: inconclusive$", done.stdout, re.MULTILINE)
    for part in ("inconclusive", "other processes used", "run again on a quiet machine"):
        assert part in done.stdout
    disturbed = measured.read_text()
    done = _run_until_quiet(cli, *arguments)
    assert measured.read_text() != disturbed  # it is taken again
    if done.returncode == Verdict.INCONCLUSIVE.exit_code:  # something else used the machine
        assert "other processes used" in done.stdout
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(outcome.read_text())["verdict"] == "met"
