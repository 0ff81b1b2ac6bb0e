"""The main job: model, target and budget in, a measured artifact out.

    target -> baseline -> profile -> plan -> compress -> export -> bench -> (correct: plan again)

In: `Options`. Out: an `Outcome`, and a run directory with the output of every stage. Stages whose
inputs are unchanged are not run again (`edgeprune.rundir`), so a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeprune.data.kinds import passages_of
from edgeprune.errors import DeviceError, InputError, UsageError
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.files import model_bytes
from edgeprune.model.quantization import DEFAULT_FORMAT, check_format
from edgeprune.model.shape import Shape
from edgeprune.model.source import resolve_model
from edgeprune.planning.bounds import check_demand
from edgeprune.planning.budget import Budget
from edgeprune.planning.demand import Demand
from edgeprune.planning.goals import MARGIN
from edgeprune.planning.grammar import read_budget
from edgeprune.planning.greedy import Plan
from edgeprune.profiling.profile import Profile, cost_of
from edgeprune.profiling.threads import best_threads
from edgeprune.pruning.calibration import calibration_corpus
from edgeprune.quality.windows import check_length, evaluation_kinds
from edgeprune.records import Verdict
from edgeprune.report.outcome import Outcome
from edgeprune.report.verdict import Judgement, is_decided, judge, requests_needed, verdict
from edgeprune.report.words import limits_in_words, measured_in_words, plan_lines, profile_in_words
from edgeprune.run.artifacts import Artifacts
from edgeprune.run.bench import Bench
from edgeprune.run.evaluator import Evaluator
from edgeprune.run.finish import Round, check_judge, finish, train_and_finish, training_of
from edgeprune.run.limits import AUTO_QUANTS, choose_format, median_limits
from edgeprune.run.onnx_choice import choose_onnx_format
from edgeprune.run.options import Options
from edgeprune.run.parts import Parts
from edgeprune.run.request import AUTO, NO_TEXT, Request, open_run
from edgeprune.run.strategies import check_strategy, strategy_of
from edgeprune.run.weights import Weights
from edgeprune.target.measurement import Comparison, Measurement, Workload
from edgeprune.target.session import Device, open_device
from edgeprune.target.target import load_target

ROUNDS = 3
REQUESTS, EMULATED_REQUESTS = 10, 6
Say = Callable[[str], None]


def run(options: Options, *, say: Say = lambda _: None, notify: Say = lambda _: None) -> Outcome:
    """Do the main job.

    Args:
        options: What the user asked for.
        say: Told each result, for people, as soon as it is there.
        notify: Told what is being done just now.

    Raises:
        EdgePruneError: See `edgeprune.errors`; nothing that was finished is lost.
    """
    training = training_of(options)
    check_judge(options, read_budget(options.budget))
    with _begun(options, say, notify) as (asked, budget):
        weights = asked.artifacts.weights
        if weights.tokenizer is None:  # perplexity, at the latest, needs one
            raise InputError(f"{weights.checkpoint.path} has no tokenizer, which a run needs",
                             remedy="put tokenizer.json (or a tokenizer.gguf) beside the weights")
        if training is not None:
            from edgeprune.recovery.recover import check_text  # noqa: PLC0415 - seconds

            check_text(weights.checkpoint.path, training.recipe, training.data)
        parts = choose_onnx_format(asked, allow_loss=options.allow_quality_loss, say=say)
        auto = options.quant == AUTO
        baseline = _baseline(parts, say, keep=budget.is_relative)
        profiled = _profile(parts, say, auto=auto)
        chosen, demand = choose_format(parts, budget, profiled, baseline, auto=auto, say=say)
        rounds = _rounds(chosen, baseline, demand, profiled, say)
        if training is not None and rounds[-1].verdict is Verdict.MISSED:
            say("not trained: the budget was missed")
            training = None
        if training is None:
            return finish(chosen, budget, rounds, options)
        return train_and_finish(chosen, training, baseline, budget, rounds, options, say)


def plan_only(
    options: Options, *, say: Say = lambda _: None, notify: Say = lambda _: None
) -> tuple[Plan, Demand]:
    """Profile and plan; nothing is built, and only synthetic models run on the target.

    Percentages are of the unpruned model as predicted. Returns the plan and what it was to hold.

    Raises:
        EdgePruneError: See `edgeprune.errors`.
    """
    with _begun(options, say, notify) as (parts, budget):
        auto = options.quant == AUTO
        profiled = _profile(parts, say, auto=auto)
        chosen, demand = choose_format(parts, budget, profiled, None, auto=auto, say=say)
        check_demand(chosen.artifacts.shape, demand, profiled.read_bytes_per_s)
        plan = chosen.artifacts.plan(0, demand)
        plan.write(chosen.artifacts.run.path / "plan.json")
        return plan, demand


@contextmanager
def _begun(options: Options, say: Say, notify: Say) -> Iterator[tuple[Parts, Budget]]:
    """Open what a run works with: the model, the target, the run directory."""
    budget = read_budget(options.budget)
    quant = AUTO if options.quant == AUTO else check_format(options.quant)
    strategy = strategy_of(options.strategy, importance=options.importance, repair=options.repair)
    calibration = calibration_corpus(options.calibration)
    evaluation = evaluation_kinds(options.evaluate, calibration.own_passages | passages_of(
        filter(None, [options.recover_data]), "training text"))
    target = load_target(options.target, options.targets)
    name, directory = resolve_model(options.model, options.adapter, notify=notify)
    checkpoint = Checkpoint(directory)
    check_strategy(strategy, checkpoint.shape)
    if (longest := checkpoint.shape.max_position_embeddings) < budget.n_ctx:
        raise UsageError(f"the budget needs a context of {budget.n_ctx} tokens, the model was made "
                         f"for {longest}", remedy="ask for fewer tokens")
    request = Request(model=name, target=target.name, budget=budget, quant=quant,
                       strategy=strategy, effort=options.effort, objective=options.objective,
                       calibration=calibration.digest if calibration.own else NO_TEXT)
    run_directory = open_run(options, request)
    with run_directory.left_if_begun(), open_device(target, notify=notify) as device:
        say(f"target {target.name}: {device.facts.describe()}")
        say(f"model {name}: {checkpoint.shape.describe()}")
        usual = EMULATED_REQUESTS if device.facts.emulated else REQUESTS
        workload = Workload(n_prompt=budget.n_prompt, n_new=budget.n_new, n_ctx=budget.context,
                            requests=options.requests or max(usual, requests_needed(budget)))
        reference = DEFAULT_FORMAT if quant == AUTO else quant
        weights = Weights(name=name, checkpoint=checkpoint, strategy=strategy,
                          effort=options.effort, objective=options.objective,
                          calibration=calibration, run=run_directory, profiles=options.profiles,
                          notify=device.notify)
        if options.calibration is not None:
            weights.cutting.check_text()
        if options.evaluate is not None and weights.tokenizer is not None:
            check_length(evaluation, weights.tokenizer)
        set_threads(device, options.threads, checkpoint.shape, reference, options.profiles, say)
        yield Parts(
            Artifacts(weights, quant=reference, reference=reference),
            Bench(device, workload, options.profile_seconds), Evaluator(evaluation)), budget


def set_threads(
    device: Device, asked: str | None, shape: Shape, quant: str, profiles: Path, say: Say
) -> None:
    """Set how many CPU threads the target uses, as the user asked.

    Raises:
        UsageError: Neither a number of its CPUs nor `auto`.
    """
    if asked == AUTO:
        found = best_threads(device, shape, quant, profiles)
        device.threads = found.chosen
        tried = ", ".join(f"{n}: {ms:.0f} ms" for n, ms in sorted(found.request_ms.items()))
        say(f"threads: {found.chosen} (a request with {tried})")
    elif asked is not None:
        if not asked.isdecimal() or not 1 <= int(asked) <= device.facts.cpus:
            raise UsageError(f"{device.target.name} has {device.facts.cpus} CPUs", got=asked,
                             remedy="--threads takes 'auto' or a number from 1 to that")
        device.threads = int(asked)


def _baseline(parts: Parts, say: Say, *, keep: bool) -> Measurement:
    """Measure the unpruned model in the same number format on the target; `keep` leaves it there.

    Raises:
        DeviceError: The target has less RAM than the file has bytes.
    """
    artifacts, bench, _ = parts
    artifact = artifacts.export_unpruned()
    facts, size = bench.device.facts, model_bytes(artifact)
    if size > facts.ram_bytes:
        raise DeviceError(
            f"the unpruned model ({size / 2**20:.0f} MiB) does not fit the RAM of "
            f"{bench.device.target.name} ({facts.ram_bytes / 2**20:.0f} MiB), and edgeprune "
            "measures it there first", remedy="start from a smaller model or a smaller --quant, or "
            "see what `edgeprune plan` predicts",
        )
    measured = bench.unpruned(artifacts)
    if not keep:
        bench.forget(artifact)
    say(f"unpruned, {artifacts.reference}: {measured_in_words(measured)}")
    return measured


def _profile(parts: Parts, say: Say, *, auto: bool) -> Profile:
    """Profile the target for the model's shape, and for every format that may be taken."""
    quant = parts.artifacts.quant
    others = [other for other in AUTO_QUANTS if other != quant] if auto else ()
    profiled = parts.bench.profile(parts.artifacts, others)
    say(profile_in_words(profiled))
    return profiled


def _rounds(
    parts: Parts, baseline: Measurement, demand: Demand, profiled: Profile, say: Say
) -> list[Round]:
    """Plan, build, measure, and plan again with what was learnt, at most `ROUNDS` times.

    Machines drift: a budget that is relative to the unpruned model is judged against that model
    measured beside the pruned one, not minutes earlier. Where an interval held the limit, the next
    plan stays further below it.
    """
    artifacts, bench, _ = parts
    done: list[Round] = []
    budget = demand.budget
    while True:
        number = len(done) + 1
        say(f"budget: {limits_in_words(demand.limits)}")
        check_demand(artifacts.shape, demand, profiled.read_bytes_per_s)
        plan = artifacts.plan(number, demand)
        say("\n".join(plan_lines(plan)))
        # compressed and exported in it, unless what comes of it was measured before
        pair = bench.compare(
            artifacts, number, plan.cuts, None if budget.is_relative else baseline,
            lambda found: is_decided(budget, found))
        judgements = tuple(judge(budget, pair))
        done.append(Round(plan=plan, measured=pair, judgements=judgements,
                           verdict=verdict(judgements, pair.disturbances)))
        if budget.is_relative:
            say(f"round {number}, unpruned again: {measured_in_words(pair.baseline)}")
        say(f"round {number}, pruned: {measured_in_words(pair.pruned)}: {done[-1].verdict}")
        if done[-1].verdict is Verdict.MET or pair.disturbances or number == ROUNDS:
            return done
        if artifacts.path.exists():
            bench.forget(artifacts.path)
        demand = _corrected(demand, plan, pair, judgements)


def _corrected(
    demand: Demand, plan: Plan, pair: Comparison, judgements: Sequence[Judgement]
) -> Demand:
    """Return what the next round's plan has to hold, after what this one's measurement showed."""
    factors = cost_of(pair.pruned).ratios(demand.unscaled(plan.shape))
    # where the limit lies within the interval: its upper half
    doubt = max((j.measured.high / j.measured.point - 1 for j in judgements
                 if j.measured.is_bounded), default=0.0)
    return demand.model_copy(update={
        "limits": median_limits(demand.budget, pair.baseline), "factors": factors,
        "margin": MARGIN + doubt})


