"""Print the case study of the field: Llama-3.1-8B on an ARM server that runs it at 8 tokens/s.

    python benchmarks/case_study.py [--measure]

No weights are needed. The recorded profile of that shape (`benchmarks/llama-3.1-8b/profile.json`,
made by --measure on the machine that it names) is scaled in time so that the unpruned model decodes
8 tokens/s in Q4_K_M, as the server of the case does; RAM and file sizes are taken as they are. It
is asked for 14 tokens/s, and for 100 tokens in under 2 s.

What to cut depends on weights, which the case has none of: the plan is made on an assumed table of
losses (said where it is printed). What the shapes cost does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeprune.errors import InfeasibleError
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape, shape_of_config
from edgeprune.planning.bounds import check_demand
from edgeprune.planning.budget import Metric
from edgeprune.planning.cost import Cost
from edgeprune.planning.demand import Demand
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.loss_table import LossTable
from edgeprune.planning.recipes import joint_plans
from edgeprune.planning.widths import least_of, served_components, served_ffn, served_heads
from edgeprune.profiling.profile import Profile, profile
from edgeprune.records import write_text
from edgeprune.report.words import plan_lines
from edgeprune.target.session import open_device
from edgeprune.target.target import load_target

HERE = Path(__file__).parent / "llama-3.1-8b"
QUANT, TOKENS_PER_S, RAM_BYTES = "Q4_K_M", 8.0, 16e9
FASTER, REQUEST = "decode > 14 tokens/s, ram < 16 GB", "100 tokens < 2 s, ram < 16 GB"


def main() -> int:
    """Measure when asked to, then print what is possible and what is not."""
    parser = argparse.ArgumentParser(description="Llama-3.1-8B at 8 tokens/s: what is possible?")
    parser.add_argument("--measure", action="store_true", help="record the profile anew, here")
    shape = shape_of_config(json.loads((HERE / "config.json").read_text(encoding="utf-8")))
    if parser.parse_args().measure:
        local = load_target("local", Path())
        with TemporaryDirectory() as scratch, open_device(local, notify=_to_stderr) as device:
            found = profile(device, shape, QUANT, Path(scratch))
        write_text(HERE / "profile.json", found.model_dump_json() + "\n")
    recorded = Profile.read(HERE / "profile.json").fitted_anew()
    here = recorded.model.predict(shape, 32, 100)
    slower = 1e3 / TOKENS_PER_S / here.token_ms
    print(f"profile: {recorded.facts.describe()}; {recorded.seconds:.0f} s, "
          f"{recorded.sent_bytes / 1e3:.0f} kB sent; {here.decode_tokens_per_s:.2f} tokens/s "
          f"predicted there; times multiplied by {slower:.3f}")
    factors = {"token_ms": slower, "ttft_ms": slower}
    speed = recorded.read_bytes_per_s / slower

    def demand(text: str) -> Demand:
        budget = parse_budget(text)
        return Demand(budget=budget, limits=budget.limits({}), model=recorded.model,
                      factors=factors, margin=0.03)

    wanted = demand(FASTER)
    whole = wanted.predict(shape)
    print(f"unpruned: {whole.decode_tokens_per_s:.1f} tokens/s, 100 tokens after 32 in "
          f"{whole.latency_ms(100) / 1e3:.1f} s, RAM {whole.ram_bytes / 2**30:.1f} GiB, file "
          f"{whole.file_bytes / 2**30:.2f} GiB")
    _levers(shape, wanted.predict)
    _plan(shape, wanted, speed)
    _plan(shape, demand(REQUEST), speed)
    return 0


def _levers(shape: Shape, predict: Callable[[Shape], Cost]) -> None:
    """Print how fast each way of cutting gets by itself."""
    def show(label: str, cut: Shape) -> None:
        print(f"  {label:<44} {predict(cut).decode_tokens_per_s:6.2f} tokens/s")

    layers = shape.num_hidden_layers
    print("each lever by itself:")
    show("8 of 32 layers dropped", shape.replace(num_hidden_layers=layers - 8))
    enough = [n for n in range(layers, 0, -1) if predict(
        shape.replace(num_hidden_layers=n)).decode_tokens_per_s >= 14]
    show(f"{layers - enough[0]} of 32 layers dropped (the first above 14)",
         shape.replace(num_hidden_layers=enough[0]))
    groups, queries = served_heads(shape)[-1]
    show(f"heads cut to {groups * queries} in {groups} KV groups", shape.replace(
        num_key_value_heads=groups, num_attention_heads=groups * queries))
    narrow = served_ffn(shape)[-1]
    show(f"FFN cut to {narrow}", shape.replace(intermediate_size=narrow))
    fewer = served_components(shape)[-1]
    show(f"hidden states of {shape.hidden_size - fewer} components",
         Cuts(components=fewer).shape(shape))
    least = least_of(layers)
    show(f"all of these, {least} layers", Cuts(components=fewer).shape(shape).replace(
        num_hidden_layers=least, num_key_value_heads=groups,
        num_attention_heads=groups * queries, intermediate_size=narrow))


def _plan(shape: Shape, demand: Demand, read_bytes_per_s: float) -> None:
    """Print a plan for a demand, or why there is none."""
    print(f"\n{demand.budget.text}:")
    try:
        check_demand(shape, demand, read_bytes_per_s)
        plan, *_ = joint_plans(shape, demand, assumed_losses(shape))  # of the most components
    except InfeasibleError as error:
        print(f"infeasible: {error}")
        return
    print("losses assumed: a layer 0.06 nats, the first two and the last 1.0; half of all heads "
          "0.9, half of the FFN 0.5, growing with the square")
    first, *steps, last = plan_lines(plan)
    print("\n".join([first, *steps[:3], f"     ... {max(len(steps) - 3, 0)} more", last]))
    print(f"predicted: {plan.cost.decode_tokens_per_s:.1f} tokens/s, 100 tokens in "
          f"{plan.cost.latency_ms(100) / 1e3:.1f} s, {Metric.RAM.show(plan.cost.ram_bytes)} of RAM")


def assumed_losses(shape: Shape) -> LossTable:
    """Return losses as pruning papers show them: first and last layers dear, FFN cheapest."""
    layers, width = shape.num_hidden_layers, shape.intermediate_size
    groups, queries = shape.num_key_value_heads, shape.queries_per_group
    return LossTable(
        base_loss=2.0,
        layers={i: 1.0 if i in {0, 1, layers - 1} else 0.06 for i in range(layers)},
        kv_groups={groups - g: 3.6 * (1 - g / groups) ** 2 for g in range(1, groups + 1)},
        query_heads={queries - q: 3.6 * (1 - q / queries) ** 2 for q in range(1, queries + 1)},
        ffn_channels={width - w: 2.0 * (1 - w / width) ** 2 for w in served_ffn(shape)},
    )


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
