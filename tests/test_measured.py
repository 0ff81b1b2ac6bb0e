"""The main job with this machine for itself: a verdict on a quiet machine, none on a busy one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from edgeprune.records import Verdict
from tests.conftest import Cli
from tests.test_pipeline import FEW, SIZE

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
def test_smollm2_runs_a_quarter_faster_measured(cli: Cli, tmp_path: Path) -> None:
    arguments = ("run", "smollm2", "--target", "local", "--budget", "50 tokens < 75%", "--name",
                 "r", "--effort", "low", "--threads", "1", "--profile-seconds", "30")
    done = _run_until_quiet(cli, *arguments)
    outcome = json.loads((tmp_path / "runs/r/run.json").read_text())
    (latency,) = outcome["judgements"]
    if done.returncode == Verdict.INCONCLUSIVE.exit_code:  # something else used the machine
        assert outcome["verdict"] == "inconclusive"
        assert "other processes used" in done.stdout or (
            latency["measured"]["low"] <= latency["limit"] < latency["measured"]["high"])
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert outcome["verdict"] == "met"
        assert latency["measured"]["high"] <= latency["limit"]
    assert latency["limit"] == pytest.approx(0.75 * outcome["before"]["latency_p50_ms"])
    told = [*(step["reason"] for step in outcome["plan"]["steps"]), *outcome["plan"]["refined"]]
    assert told
    assert len(json.loads((tmp_path / "runs/r/bench.json").read_text())["token_ns"]) >= 10
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs/r/model")
    left = sum(weight.numel() for weight in model.model.layers.parameters())
    assert left < 0.9 * 106_202_880  # those of the unpruned model's layers
    assert outcome["after"]["perplexity"] > outcome["before"]["perplexity"]
    for text in ("target local", told[0][:60], "perplexity", "predicted"):
        assert text in done.stdout
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
