"""The main job: model, target and budget in, a measured artifact out.

    target -> baseline -> profile -> plan -> compress -> export -> bench -> (correct: plan again)

In: `Options`. Out: an `Outcome`, and a run directory with the output of every stage. Stages whose
inputs are unchanged are not run again (`edgeprune.stages`), so a killed run goes on where it was.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from edgeprune.cost import CostModel
from edgeprune.device.measure import Comparison, Measurement, Workload
from edgeprune.device.session import open_device
from edgeprune.device.target import load_target
from edgeprune.errors import DeviceError, UsageError
from edgeprune.export.gguf import check_format
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.source import resolve_model
from edgeprune.planning.budget import Budget, Metric, parse_budget, value_of, violation
from edgeprune.planning.greedy import Plan
from edgeprune.profiling.profile import Profile, cost_of
from edgeprune.records import Record, Verdict, write_text
from edgeprune.report.outcome import Outcome, figures_of
from edgeprune.report.render import limits_in_words, plan_lines, report
from edgeprune.rundir import RunDirectory
from edgeprune.stages import Stages

ROUNDS = 3
REQUESTS, EMULATED_REQUESTS = 10, 3
Say = Callable[[str], None]


class Options(Record):
    """What the user asked for.

    Attributes:
        model: `smollm2`, a checkpoint directory or a GGUF file.
        target: Name of a target.
        budget: In the grammar of `edgeprune.planning.budget`.
        quant: Number format, one of `edgeprune.model.quantization.FORMATS`.
        name: Name of the run directory; made from the rest when None.
        requests: Measured requests; 10 when None, 3 on an emulated target.
        fresh: Start over instead of going on with what the run directory holds.
        runs: Where run directories are.
        targets: Where target files are.
        profiles: Where profiles are.
    """

    model: str
    target: str
    budget: str
    quant: str = "Q4_K_M"
    name: str | None = None
    requests: int | None = None
    fresh: bool = False
    runs: Path = Path("runs")
    targets: Path = Path("targets")
    profiles: Path = Path("profiles")


class _Request(Record):
    """What a run directory was made for: `request.json`."""

    model: str
    target: str
    budget: Budget
    quant: str


class _Round(Record):
    """One turn of plan, build and measure.

    Attributes:
        plan: What was cut.
        measured: The artifact and, beside it, the unpruned model.
        limits: What the artifact is judged by.
        verdict: The judgement.
    """

    plan: Plan
    measured: Comparison
    limits: dict[Metric, float]
    verdict: Verdict


def run(options: Options, *, say: Say = lambda _: None, notify: Say = lambda _: None) -> Outcome:
    """Do the main job.

    Args:
        options: What the user asked for.
        say: Told each result, for people, as soon as it is there.
        notify: Told what is being done just now.

    Raises:
        EdgePruneError: See `edgeprune.errors`; nothing that was finished is lost.
    """
    budget, quant = parse_budget(options.budget), check_format(options.quant)
    target = load_target(options.target, options.targets)
    name, directory = resolve_model(options.model, notify=notify)
    checkpoint = Checkpoint(directory)
    request = _Request(model=name, target=target.name, budget=budget, quant=quant)
    run_directory = _open_run(options, request)
    with open_device(target, notify=notify) as device:
        say(f"target {target.name}: {device.facts.describe()}")
        say(f"model {name}: {checkpoint.shape.describe()}")
        requests = options.requests or (EMULATED_REQUESTS if device.facts.emulated else REQUESTS)
        workload = Workload(n_prompt=budget.n_prompt, n_new=budget.n_new, requests=requests)
        stages = Stages(name=name, checkpoint=checkpoint, quant=quant, workload=workload,
                        device=device, run=run_directory, profiles=options.profiles)
        baseline = _baseline(stages, say, keep=budget.is_relative)
        profiled = stages.profile()
        say(_profile_in_words(profiled))
        model = profiled.model.with_header_of(checkpoint.shape, baseline.file_bytes)
        return _finish(stages, budget, _rounds(stages, budget, baseline, model, say))


def judge(
    values: Mapping[Metric, float], limits: Mapping[Metric, float], doubts: Collection[str]
) -> Verdict:
    """Return what measured values say about limits; nothing disturbed is ever met. Pure."""
    if doubts:
        return Verdict.INCONCLUSIVE
    return Verdict.MISSED if violation(values, limits) > 0 else Verdict.MET


def measured_values(measurement: Measurement) -> dict[Metric, float]:
    """Return every metric of a measurement; latency is the p50 of whole requests."""
    cost = cost_of(measurement)
    values = {m: value_of(m, cost, measurement.workload.n_new) for m in Metric}
    return {**values, Metric.LATENCY: measurement.latency_ms(50)}


def _baseline(stages: Stages, say: Say, *, keep: bool) -> Measurement:
    """Measure the unpruned model in the same number format on the target; `keep` leaves it there.

    Raises:
        DeviceError: The target has less RAM than the file has bytes.
    """
    artifact = stages.export_baseline()
    facts, size = stages.device.facts, artifact.stat().st_size
    if size > facts.ram_bytes:
        raise DeviceError(
            f"the unpruned model ({size / 2**20:.0f} MiB) does not fit the RAM of "
            f"{stages.device.target.name} ({facts.ram_bytes / 2**20:.0f} MiB), and edgeprune "
            "measures it there first", remedy="start from a smaller model or a smaller --quant",
        )
    measured = stages.bench_baseline()
    if not keep:
        stages.device.forget(stages.device.remote_name(artifact))
    say(f"unpruned, {stages.quant}: {_in_words(measured)}")
    return measured


def _rounds(
    stages: Stages, budget: Budget, baseline: Measurement, model: CostModel, say: Say
) -> list[_Round]:
    """Plan, build, measure, and plan again with what was learnt, at most `ROUNDS` times.

    Machines drift: a budget that is relative to the unpruned model is judged against that model
    measured beside the pruned one, not minutes earlier.
    """
    done: list[_Round] = []
    shape, measured = stages.checkpoint.shape, baseline
    limits = budget.limits(measured_values(baseline))
    while True:
        number = len(done) + 1
        say(f"budget: {limits_in_words(limits)}")
        factors = cost_of(measured).ratios(model.predict(shape))
        plan = stages.plan(number, budget, limits, model, factors)
        say("\n".join(plan_lines(plan)))
        pair = stages.compare(number, plan.cuts, None if budget.is_relative else baseline)
        shape, measured = plan.shape, pair.pruned
        limits = budget.limits(measured_values(pair.baseline))
        verdict = judge(measured_values(measured), limits, pair.disturbances)
        done.append(_Round(plan=plan, measured=pair, limits=limits, verdict=verdict))
        if budget.is_relative:
            say(f"round {number}, unpruned again: {_in_words(pair.baseline)}")
        say(f"round {number}, pruned: {_in_words(measured)}: {verdict}")
        if verdict is not Verdict.MISSED or number == ROUNDS:
            return done
        if stages.artifact.is_file():
            stages.device.forget(stages.device.remote_name(stages.artifact))


def _finish(stages: Stages, budget: Budget, rounds: list[_Round]) -> Outcome:
    """Take the perplexities; write the final records and the report."""
    device, last = stages.device, rounds[-1]
    unpruned, artifact = stages.export_baseline(), stages.build(last.plan.cuts)
    # on a remote target the artifact stays: it is what was asked for
    device_path = None if device.target.is_local else device.put_model(artifact)
    for file in (unpruned, *([artifact] if device.target.is_local else [])):
        device.forget(device.remote_name(file))
    before = stages.perplexity("quality-before", unpruned, Cuts())
    after = stages.perplexity("quality-after", artifact, last.plan.cuts)
    baseline, pruned = last.measured.baseline, last.measured.pruned
    values = measured_values(pruned)
    result = Outcome(
        model=stages.name, target=device.target.name, facts=device.facts,
        emulated=device.facts.emulated, budget=budget, quant=stages.quant, verdict=last.verdict,
        disturbances=last.measured.disturbances,
        values={metric: values[metric] for metric in last.limits}, limits=last.limits,
        rounds=len(rounds), requests=stages.workload.requests,
        system_info=pruned.system_info, plan=last.plan,
        before=figures_of(baseline, before), after=figures_of(pruned, after),
        directory=stages.run.path, artifact=artifact, device_path=device_path,
    )
    last.plan.write(stages.run.path / "plan.json")
    pruned.write(stages.run.path / "bench.json")
    result.write(stages.run.path / "run.json")
    write_text(stages.run.path / "report.md", report(result))
    return result


def _open_run(options: Options, request: _Request) -> RunDirectory:
    """Find or make the run directory; refuse one that was made for something else."""
    name = options.name or _name_of(request)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UsageError("a run's name is made of letters, digits, '.', '_' and '-'", got=name)
    path = options.runs / name
    file = path / "request.json"
    if path.exists() and not file.is_file():
        raise UsageError(f"{path} exists and is not a run directory",
                         remedy="choose another --name")
    if path.exists() and options.fresh:
        shutil.rmtree(path)
    if file.is_file() and (found := _Request.read(file)) != request:
        raise UsageError(
            f"{path} holds a run of another request", got=str(found)[:200],
            remedy="choose another --name, or start it over with --fresh",
        )
    request.write(file)
    return RunDirectory(path)


def _name_of(request: _Request) -> str:
    text = f"{request.model}-{request.target}-{request.quant}-{request.budget.text}".lower()
    for sign, word in {"<": "-max-", ">": "-min-", "%": "pct"}.items():
        text = text.replace(sign, word)
    return re.sub(r"[^a-z0-9._]+", "-", text).strip("-.")


def _in_words(m: Measurement) -> str:
    emulated = ", emulated" if m.emulated else ""
    return (f"p50 {m.latency_ms(50):.0f} ms for {m.workload.n_new} tokens after "
            f"{m.workload.n_prompt}, {m.workload.requests} requests "
            f"({m.decode_tokens_per_s:.1f} tokens/s, "
            f"{m.memory.peak_bytes / 2**20:.0f} MiB{emulated})")


def _profile_in_words(found: Profile) -> str:
    errors = found.model.worst_residual
    where = " on a busy machine" if found.is_disturbed else ""
    return (f"profile: {len(found.samples)} shapes measured{where}; the fit is off by at most "
            f"{errors['token_ms']:.1%} for a token, {errors['ttft_ms']:.1%} for the prompt, "
            f"{errors['ram_bytes']:.1%} for RAM")
