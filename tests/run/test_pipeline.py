"""The whole way on this machine: runs that hold, runs that cannot, runs that were killed."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoModelForCausalLM

from edgeprune.data.kinds import shipped_kinds
from edgeprune.errors import InputError
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.on_target.agent import start_time
from edgeprune.profiling.profile import Profile
from edgeprune.records import Verdict
from edgeprune.run.limits import AUTO_QUANTS
from edgeprune.target.measurement import Comparison, Measurement
from tests.cli.test_app import assert_one_line
from tests.conftest import PROFILES, TARGETS, Cli, cli_argv, run_cli
from tests.tiny import make_tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_profiled")]
# file size does not depend on how busy the machine is; exit 4 says that it was
SIZE = ("--target", "local", "--budget", "4 tokens after 8 < 1 min, size < 80%", "--name", "r")
QUIET_OR_NOT = {0, 4}
FEW = ("--requests", "6")  # as many as an interval of 95 % needs


class Finished(NamedTuple):
    """A run that came to its end; its directory is for reading, go on from a copy of it."""

    runs: Path
    arguments: tuple[str, ...]
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def finished(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run `small` once for all that look at a run or go on from one."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "mine.txt").write_text("Our machine says: all is well. " * 400, encoding="utf-8")
    arguments = ("run", str(small), *SIZE, "--effort", "medium",
                 "--evaluate", str(directory / "mine.txt"))
    done = run_cli(directory, *arguments, "--json")
    assert done.returncode in QUIET_OR_NOT, done.stderr
    return Finished(directory / "runs", arguments, json.loads(done.stdout))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> tuple[str, ...]:
    """Copy that run to where the command line runs; give its arguments."""
    shutil.copytree(finished.runs, tmp_path / "runs")
    return finished.arguments


def test_a_run_holds_its_budget_and_leaves_everything(
    cli: Cli, small: Path, finished: Finished
) -> None:
    outcome, run = finished.outcome, finished.runs / "r"
    size = next(j for j in outcome["judgements"] if j["metric"] == "file_bytes")
    assert size["verdict"] == "met"
    assert size["measured"]["point"] == outcome["plan"]["cost"]["file_bytes"] <= size["limit"]
    assert outcome["requests"] >= 10
    for name in ("request.json", "profile.json", "plan.json", "bench.json", "run.json",
                 "report.md"):
        assert (run / name).is_file(), name
    assert list(Path(os.environ[PROFILES]).glob("models/*/sensitivity.jsonl"))
    shape = Checkpoint(run / "model").shape
    assert shape.model_dump(mode="json") == outcome["plan"]["shape"]
    assert AutoModelForCausalLM.from_pretrained(run / "model").num_parameters() < (
        AutoModelForCausalLM.from_pretrained(small).num_parameters())
    assert (run / "artifact/small-Q4_K_M.gguf").stat().st_size == outcome["after"]["file_bytes"]
    report = (run / "report.md").read_text()
    for text in ("peak RAM", "perplexity", "file size", "predicted", "Plan"):
        assert text in report
    kinds = outcome["kinds"]["kinds"]
    assert set(kinds) == {"mine.txt", *shipped_kinds("evaluation")}
    worst = max(kinds, key=lambda kind: kinds[kind]["after"] / kinds[kind]["before"])
    assert f"loses most on {worst}" in report
    assert outcome["own_kind"] == "mine.txt"
    assert "mine.txt: perplexity" in report
    for step in kinds.values():
        assert step["divergence"]["n_tokens"] >= 511
        assert step["divergence"]["kl_mean"] > 0
    replies = outcome["kinds"]["replies"]
    assert f"own replies, {replies['n_tokens']} tokens" in report
    found = json.loads(cli("eval", str(run), "--json").stdout)
    assert found["replies"]["n_tokens"] > 0
    assert found["quality"]["perplexity"] == pytest.approx(outcome["after"]["perplexity"])
    assert found["artifact"] == "small-Q4_K_M.gguf"
    # of the run's kinds only the artifact is the same here: it is held against the unpruned F16
    assert {kind: step["after"] for kind, step in found["kinds"].items()} == {
        kind: pytest.approx(step["after"]) for kind, step in kinds.items() if kind != "mine.txt"}
    parts = [found[part]["after"] / found[part]["before"] for part in ("pruning", "quantization")]
    assert math.prod(parts) == pytest.approx(found["total"]["after"] / found["total"]["before"])


def test_a_run_trains_and_lets_a_judge_decide_what_it_was_asked_to(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    text, prompts = tmp_path / "sums.txt", tmp_path / "prompts.txt"
    text.write_text("".join(f"{i} plus {i} is {2 * i}. " for i in range(500)), encoding="utf-8")
    prompts.write_text("One and one?\nWho are you?\n", encoding="utf-8")
    judge = tmp_path / "judge.gguf"
    assert cli("export", str(small), str(judge)).returncode == 0
    arguments = ("run", str(small), *FEW, "--target", "local", "--name", "r", "--recover", "sft",
                 "--recover-data", str(text), "--judge", str(judge), "--judge-prompts",
                 str(prompts), "--budget",
                 "4 tokens after 8 < 1 min, size < 80%, ppl_ratio < 9, judge_loss < 99 %")
    done = cli(*arguments, "--json")
    assert done.returncode == Verdict.INCONCLUSIVE.exit_code, done.stderr  # two prompts tell little
    outcome = json.loads(done.stdout)
    verdicts = {judgement["metric"]: judgement["verdict"] for judgement in outcome["judgements"]}
    assert verdicts == {"latency_ms": "met", "file_bytes": "met", "ppl_ratio": "met",
                        "judge_loss": "inconclusive"}
    judged, recovery = outcome["judged"], outcome["recovery"]
    assert sum(judged[key] for key in ("wins", "ties", "losses", "invalid")) == 2
    assert recovery["training"]["recovered"] < recovery["training"]["pruned"]
    assert recovery["perplexity"] != outcome["after"]["perplexity"]
    assert outcome["learnt"] == [str(text.resolve())]
    run = tmp_path / "runs/r"
    assert (run / "artifact/small-Q4_K_M.gguf").stat().st_size == outcome["after"]["file_bytes"]
    pruned, trained = Checkpoint(run / "model"), Checkpoint(run / "recovered")
    assert pruned.shape == trained.shape
    assert pruned.digest() != trained.digest()
    report = (run / "report.md").read_text()
    assert "recovery (sft, all weights" in report
    assert "judge judge.gguf" in report
    before = _lasting(run, trained=True)
    again = cli(*arguments)
    if "other processes used" not in again.stdout:
        assert "more prompts would narrow" in again.stdout
    after = _stamps(run)
    assert {stage: after[stage] for stage in before} == before


@pytest.mark.parametrize(("options", "named"), [
    (("--budget", "judge_loss < 7 %"), "--judge-prompts"),
    (("--budget", "ram < 1 GB", "--judge", "no.gguf"), "--judge-prompts"),
    (("--budget", "ram < 1 GB", "--recover", "magic"), "distill-lora"),
    (("--budget", "ram < 1 GB", "--recover-data", "a.txt"), "--recover distill"),
])
def test_half_of_a_judge_or_of_a_training_is_refused(
    cli: Cli, small: Path, tmp_path: Path, options: tuple[str, ...], named: str
) -> None:
    assert_one_line(cli("run", str(small), "--target", "local", *options), 2, named)
    assert not (tmp_path / "runs").exists()  # the name is free for the right command


def test_text_that_cannot_be_trained_on_is_told_first(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"prompt": "two"}\n')
    done = cli("run", str(small), "--target", "local", "--budget", "ram < 1 GB", "--recover", "sft",
               "--recover-data", "a.jsonl")
    assert_one_line(done, InputError.exit_code, "a.jsonl, line 2", "completion")
    assert not (tmp_path / "runs").exists()


def test_a_model_without_a_tokenizer_is_told_before_anything_is_measured(
    cli: Cli, tmp_path: Path
) -> None:
    tiny = make_tiny(tmp_path / "tiny")
    done = cli("run", str(tiny), "--target", "local", "--budget", "ram < 1 GB", "--name", "r")
    assert_one_line(done, InputError.exit_code, "no tokenizer", "tokenizer.json")
    assert not (tmp_path / "runs/r/baseline").exists()
    (tmp_path / "file").write_text("mine")
    assert_one_line(cli("run", str(tiny), "--target", "local", "--budget", "ram < 1 GB", "--name",
                        "r", "--runs", "file"), 2, "file", "another path")


def test_text_that_cannot_be_used_is_told_before_anything_is_measured(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("one two three")
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "Hi"}')
    begin = ("run", str(small), "--target", "local", "--budget", "ram < 1 GB")
    assert_one_line(cli(*begin, "--objective", "best"), 2, "worst, mean")
    for option in ("--calibration", "--evaluate"):
        assert_one_line(cli(*begin, option, "nowhere.txt"), InputError.exit_code, "nowhere.txt")
        assert_one_line(cli(*begin, option, "wrong.jsonl"), InputError.exit_code, "line 1", "text")
    assert_one_line(cli(*begin, "--calibration", "mine.txt", "--evaluate", "mine.txt"),
                    InputError.exit_code, "trained on, too")
    assert_one_line(cli(*begin, "--recover", "sft", "--recover-data", "mine.txt", "--evaluate",
                        "mine.txt"), InputError.exit_code, "trained on, too")
    assert not (tmp_path / "runs").exists()


def test_text_that_is_too_short_is_told_before_anything_is_measured(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("one two three")
    begin = ("run", str(small), "--target", "local", "--budget", "size < 80%", "--name", "r")
    for option in ("--calibration", "--evaluate"):
        assert_one_line(cli(*begin, option, "mine.txt"), InputError.exit_code, "too short",
                        "mine.txt", "are needed")
    assert_one_line(cli(*begin, "--recover", "sft", "--recover-data", "mine.txt"),
                    InputError.exit_code, "too little to train on", "mine.txt")
    assert not (tmp_path / "runs/r").exists()


def test_the_second_run_does_nothing_again(
    cli: Cli, copied: tuple[str, ...], tmp_path: Path
) -> None:
    before = _lasting(tmp_path / "runs/r")
    assert cli(*copied).returncode in QUIET_OR_NOT
    after = _stamps(tmp_path / "runs/r")
    assert {stage: after[stage] for stage in before} == before


def test_a_run_is_not_judged_on_text_that_it_learnt_from(
    cli: Cli, copied: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "runs/r/run.json"
    outcome = json.loads(file.read_text(encoding="utf-8"))
    assert outcome["learnt"] == []
    mine, gone = tmp_path / "mine.txt", tmp_path / "gone.txt"
    mine.write_text(" ".join(f"word{i}" for i in range(3000)))
    file.write_text(json.dumps({**outcome, "learnt": [str(mine), str(gone)]}))
    assert copied
    assert_one_line(cli("eval", "runs/r", "--evaluate", "mine.txt"), InputError.exit_code,
                    "trained on, too")
    (tmp_path / "short.txt").write_text("one two three")
    assert_one_line(cli("eval", "runs/r", "--evaluate", "short.txt"), InputError.exit_code,
                    "short.txt is too short", "are needed")
    mine.rename(tmp_path / "other.txt")
    mine.write_text("")
    done = cli("eval", "runs/r", "--evaluate", "other.txt", "--windows", "1")
    assert done.returncode == 0, done.stderr
    assert f"learnt from {mine}, {gone}, which can no longer be read" in done.stderr
    assert "other.txt" in done.stdout


def test_an_impossible_budget_exits_3_with_the_bound(cli: Cli, small: Path) -> None:
    done = cli("run", str(small), "--target", "local", "--budget", "4 tokens after 8 < 1 us")
    assert done.returncode == 2  # no such unit
    done = cli("run", str(small), *FEW, "--target", "local", "--budget", "size < 100 KB")
    assert_one_line(done, 3, "at best", "nearest feasible budget is file size", "MiB", "fixed")
    done = cli("run", str(small), *FEW, "--target", "local", "--budget",
               "4 tokens after 8 < 0.01 ms")
    assert_one_line(done, 3, "roofline", "GB/s", "not even 2 tokens", "--quant")


@pytest.mark.usefixtures("copied")
def test_a_run_directory_is_not_used_for_another_request(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/letter.txt").write_text("keep me")
    other = ("run", str(small), *FEW, "--target", "local", "--budget", "size < 100 KB", "--name")
    assert_one_line(cli(*other, "mine", "--fresh"), 2, "--name")
    assert (tmp_path / "runs/mine/letter.txt").exists()
    before = _stamps(tmp_path / "runs/r")
    assert_one_line(cli(*other, "r"), 2, "--fresh", "budget: 4 tokens after 8",
                    "not size < 100 KB")
    assert_one_line(cli("run", str(small), *SIZE, "--no-repair"), 2, "strategy: edgeprune by obs",
                    "repair least-squares, not", "repair none")
    assert_one_line(cli("run", str(small), *SIZE, "--effort", "medium", "--objective", "mean"), 2,
                    "objective: worst, not mean")
    (tmp_path / "mine.txt").write_text("one two three")
    assert_one_line(cli("run", str(small), *SIZE, "--effort", "medium", "--calibration",
                        "mine.txt"), 2, "another --calibration")
    assert _stamps(tmp_path / "runs/r") == before
    assert cli(*other, "r", "--fresh").returncode == 3
    assert not (tmp_path / "runs/r/run.json").exists()


@pytest.mark.timeout(1800)
def test_killed_after_any_stage_it_goes_on_where_it_was(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    """Kill the run with SIGKILL as each stage ends; what was finished is never made again."""
    run, kept = tmp_path / "runs/r", dict[str, int]()
    stages = ["baseline-export", "plan-1", "compress", "bench-1", "quality-before"]
    for stage in stages:
        process = subprocess.Popen(cli_argv("run", str(small), *SIZE, *FEW), cwd=tmp_path,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not (run / ".stages" / stage).exists():
            assert process.poll() is None, f"ended before {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        stamps = _stamps(run)
        assert {name: stamps[name] for name in kept} == kept
        kept = _lasting(run)
    done = cli("run", str(small), *SIZE, *FEW)
    assert done.returncode in QUIET_OR_NOT, done.stderr
    assert set(stages) < set(_stamps(run))
    assert not list(run.rglob("*.part"))


def test_interrupted_politely_it_stops_its_job_and_says_how_to_go_on(
    small: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        cli_argv("run", str(small), *SIZE, "--requests", "100000"), cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    jobs = Path(os.environ[TARGETS]).parent / "local/jobs"
    before = set(jobs.glob("*")) if jobs.is_dir() else set()
    while not (new := [job for job in jobs.glob("*/pid") if job.parent not in before]):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pid = json.loads(new[0].read_text())["pid"]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1].startswith("interrupted: run again")
    assert "Traceback" not in err
    assert start_time(pid) is None  # of a zombie, too: who waits for it is the system's affair


def test_the_format_that_loses_least_is_taken(cli: Cli, small: Path, tmp_path: Path) -> None:
    arguments = ("--target", "local", "--quant", "auto", "--name", "r", *FEW,
                 "--budget", "4 tokens after 8 < 1 min, size < 5 MB, ppl_ratio < 100, kl < 10")
    done = cli("run", str(small), *arguments)
    assert done.returncode in QUIET_OR_NOT, done.stderr
    lost = {}
    for line in done.stdout.splitlines():
        if found := re.match(r"(Q\w+): loses ([\d.]+) nats per token by itself, "
                             r"(-?[\d.]+|more than the best)", line):
            by_cuts = float(found[3]) if found[3][0] in "-0123456789" else math.inf
            lost[found[1]] = float(found[2]) + by_cuts
    assert "Q4_0" in lost  # the coarsest is the smallest: a size alone never leaves it out
    assert set(lost) | set(re.findall(r"^(Q\w+): its cuts alone", done.stdout, re.MULTILINE)) == (
        set(AUTO_QUANTS))
    best = min(lost, key=lambda quant: lost[quant])
    assert f"format: {best} loses least" in done.stdout
    outcome = json.loads((tmp_path / "runs/r/run.json").read_text())
    assert (outcome["quant"], outcome["reference"]) == (best, "Q4_K_M")
    assert {j["metric"]: j["verdict"] for j in outcome["judgements"]}["kl"] == "met"
    # of an impossible budget the bound is that of all formats: no other one is advised
    done = cli("plan", str(small), "--target", "local", "--quant", "auto", "--budget",
               "size < 100 KB")
    assert_one_line(done, 3, "file size reaches", "nearest feasible budget")
    assert "--quant" not in done.stderr


def test_a_plan_is_made_without_building_anything(cli: Cli, small: Path, tmp_path: Path) -> None:
    arguments = ("plan", str(small), "--target", "local", "--budget", "decode > 120%",
                 "--threads", "1", "--name", "r")
    done = cli(*arguments, "--explain")
    assert done.returncode == 0, done.stderr
    for part in ("exact planner (HiGHS)", "gap", "predicted, not measured", "decode"):
        assert part in done.stdout
    made = json.loads((tmp_path / "runs/r/plan.json").read_text())
    assert made["cuts"] != json.loads(Cuts().model_dump_json())
    assert not (tmp_path / "runs/r/model").exists()
    again = json.loads(cli(*arguments, "--json").stdout)["plan"]
    if Profile.read(tmp_path / "runs/r/profile.json").is_disturbed:  # then it was measured anew
        made = json.loads((tmp_path / "runs/r/plan.json").read_text())
    assert again == made
    assert_one_line(cli(*arguments[:-4], "--threads", "0"), 2, "CPUs", "auto")


def test_nothing_is_cut_to_stay_below_a_size_that_is_known(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    for limit, cut in (("100.5%", False), ("99.5%", True)):
        done = cli("plan", str(small), "--target", "local", "--budget", f"size < {limit}",
                   "--name", limit[:-1])
        assert done.returncode == 0, done.stderr
        made = json.loads((tmp_path / "runs" / limit[:-1] / "plan.json").read_text())
        assert (made["cuts"] != json.loads(Cuts().model_dump_json())) == cut


def test_a_budget_can_be_a_file_and_must_fit_the_model(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.toml").write_text('budget = ["size < 100 KB", "context >= 256"]\n')
    done = cli("plan", str(small), "--target", "local", "--budget", "b.toml")
    assert_one_line(done, 3, "size < 100 KB, context >= 256")
    done = cli("plan", str(small), "--target", "local", "--budget", "size < 1 GB, context >= 9999")
    assert_one_line(done, 2, "9999", "512")


def _lasting(run: Path, *, trained: bool = False) -> dict[str, int]:
    """Return when the stages were made that even a busy machine does not have made again.

    What was measured while it was busy is measured again: requests, profiles, and so plans; where
    the artifact was trained since, that of the untrained model is exported again to be measured.
    """
    profile, alone, pair = (run / name for name in (
        "profile.json", "baseline/bench.json", "rounds/1/bench.json"))
    disturbed = (
        (profile.exists() and Profile.read(profile).is_disturbed)
        or (alone.exists() and bool(Measurement.read(alone).disturbances))
        or (pair.exists() and bool(Comparison.read(pair).disturbances)))
    again = {"bench", *({"plan"} if disturbed else ()),
             *({"export"} if disturbed and trained else ())}
    return {name: at for name, at in _stamps(run).items()
            if not any(part in name for part in again)}


def _stamps(run: Path) -> dict[str, int]:
    return {stamp.name: stamp.stat().st_mtime_ns for stamp in (run / ".stages").iterdir()
            if stamp.suffix != ".part"}
