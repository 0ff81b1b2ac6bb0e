"""Strategies: every recipe, on every kind of Llama, ends in a checkpoint that transformers runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeprune.data import shipped_text
from edgeprune.errors import InputError, UsageError
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.gguf import GgufModel
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.planning.budget import violation
from edgeprune.planning.demand import Demand
from edgeprune.planning.grammar import parse_budget
from edgeprune.pruning.calibration import Corpus, Effort, calibration_corpus, effort_of
from edgeprune.pruning.criterion import Criterion, Method
from edgeprune.run.cutting import Cutting
from edgeprune.run.strategies import STRATEGIES, Repair, Strategy, strategy_of
from edgeprune.rundir import SharedDirectory
from tests.planning.test_recipes import MODEL
from tests.tiny import KINDS, hf_logits, make_tiny, within_a_subspace

pytestmark = pytest.mark.slow
TEXT = Corpus({"text": (shipped_text("calibration")[:80_000],)})


@pytest.fixture(scope="module", params=list(KINDS))
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """Give a small Llama with a tokenizer, whose FFN has widths to choose from."""
    path = make_tiny(tmp_path_factory.mktemp("model") / request.param, request.param,
                     tokenizer=True, intermediate_size=768, num_hidden_layers=6,
                     initializer_range=0.05)
    return Checkpoint(path)


def _cutting(checkpoint: Checkpoint, strategy: Strategy, scratch: Path) -> Cutting:
    scratch.mkdir(exist_ok=True)
    tokenizer = tokenizer_of(checkpoint.path, scratch / "tokenizer.gguf")
    return Cutting(checkpoint, checkpoint.digest(), tokenizer, TEXT, strategy, Effort.LOW,
                   SharedDirectory(scratch / "run", lambda _: None))


def _demand(checkpoint: Checkpoint, text: str) -> Demand:
    budget = parse_budget(text)
    demand = Demand(budget=budget, limits={}, model=MODEL, factors={}, margin=0.0)
    limits = budget.limits(budget.values(demand.predict(checkpoint.shape)))
    return demand.model_copy(update={"limits": limits})


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_recipe_holds_the_budget_and_its_checkpoint_runs(
    checkpoint: Checkpoint, name: str, tmp_path: Path
) -> None:
    cutting = _cutting(checkpoint, strategy_of(name), tmp_path / "scratch")
    demand = _demand(checkpoint, "decode > 125%")
    plan = cutting.plan(demand)
    assert violation(demand.budget.values(plan.cost), demand.limits) == 0
    cutting.write(plan.cuts, tmp_path / "out")
    pruned = Checkpoint(tmp_path / "out")
    for size in ("num_hidden_layers", "intermediate_size", "hidden_size", "num_attention_heads"):
        assert getattr(pruned.shape, size) == getattr(plan.shape, size)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    made = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False,
                          eos_token_id=None, pad_token_id=0)
    assert torch.as_tensor(made).shape == (1, 7)
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_plans_and_weights_are_the_same_every_time(tmp_path: Path) -> None:
    model = Checkpoint(make_tiny(tmp_path / "model", tokenizer=True, intermediate_size=768))
    demand, outs = _demand(model, "decode > 130%"), []
    for name in ("one", "other"):
        cutting = _cutting(model, strategy_of("edgeprune"), tmp_path / name)
        outs.append(cutting.plan(demand))
        cutting.write(outs[-1].cuts, tmp_path / f"{name}-out")
    assert outs[0] == outs[1]
    assert (Checkpoint(tmp_path / "one-out").digest()
            == Checkpoint(tmp_path / "other-out").digest())


def test_the_finalist_that_is_best_when_built_is_taken(tmp_path: Path) -> None:
    model = Checkpoint(make_tiny(tmp_path / "model", tokenizer=True, intermediate_size=768,
                                 num_hidden_layers=6, initializer_range=0.05))
    demand = _demand(model, "decode > 130%")
    cutting = replace(_cutting(model, strategy_of("edgeprune"), tmp_path / "scratch"),
                      corpus=calibration_corpus(), effort=Effort.MEDIUM)
    made = cutting.plan(demand)
    judged = (cutting.run.path / "judged.jsonl").read_text().split("\n")
    losses = [json.loads(line)[1]["worse"] for line in judged]
    assert len(losses) == min(Effort.MEDIUM.finalists, len(made.finalists)) > 1
    assert made.loss == min(losses)
    assert made.cuts == made.finalists[losses.index(min(losses))]
    assert made.cost == demand.predict(made.shape)
    assert violation(demand.budget.values(made.cost), demand.limits) == 0
    assert made.judged == tuple(losses)
    assert any("less when built" in line for line in made.refined) == (made.loss != losses[0])
    # none is built again
    assert replace(cutting).plan(demand) == made
    assert (cutting.run.path / "judged.jsonl").read_text().split("\n") == judged
    # without repair, what is scored is what is built
    bare = replace(cutting, strategy=strategy_of("edgeprune", repair=False))
    assert bare.plan(demand).judged == ()


@pytest.mark.parametrize("kind", ["gqa-tied", "mha-untied"])
def test_components_that_tell_nothing_go_first(kind: str, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", kind, tokenizer=True, hidden_size=576,
                      intermediate_size=512, num_hidden_layers=2, initializer_range=0.05)
    checkpoint = Checkpoint(within_a_subspace(model, 500))
    cutting = replace(_cutting(checkpoint, strategy_of("edgeprune"), tmp_path / "scratch"),
                      corpus=calibration_corpus(), effort=Effort.MEDIUM)
    demand = _demand(checkpoint, "decode > 105%")
    plan = cutting.plan(demand)
    assert plan.cuts == Cuts(components=64)
    assert plan.loss is not None
    assert plan.loss < 0.01 < max(plan.judged)
    # the best of each, then those of the better one
    assert [cuts.components for cuts in plan.finalists] == [0, *[64] * (len(plan.judged) - 1)]
    assert violation(demand.budget.values(plan.cost), demand.limits) == 0
    cutting.write(plan.cuts, tmp_path / "out")
    assert Checkpoint(tmp_path / "out").shape == plan.shape
    tokens = [3, 14, 15, 92, 65, 35]
    torch.testing.assert_close(hf_logits(tmp_path / "out", tokens), hf_logits(model, tokens),
                               rtol=0.05, atol=0.05)
    # what it is deployed as: rows of the heads are longer than the hidden states, which are untied
    file = tmp_path / "out.gguf"
    export_gguf(Checkpoint(tmp_path / "out"), None, file, quant="Q4_K_M", name="out")
    with GgufModel(file, threads=1) as exported:
        assert np.isfinite(exported.logits(tokens)).all()


def test_keys_tell_apart_what_differs_and_only_that(tmp_path: Path) -> None:
    model = Checkpoint(make_tiny(tmp_path / "model", tokenizer=True))
    ours, bare = (_cutting(model, strategy_of("edgeprune", repair=repair), tmp_path / "scratch")
                  for repair in (True, False))
    assert ours.key(Cuts()) == bare.key(Cuts())
    assert ours.key(Cuts(layers=(1,))) != bare.key(Cuts(layers=(1,)))
    shortgpt = _cutting(model, strategy_of("shortgpt"), tmp_path / "scratch")
    assert bare.key(Cuts(layers=(1,))) == shortgpt.key(Cuts(layers=(1,)))
    random = _cutting(model, strategy_of("edgeprune", importance="random"), tmp_path / "scratch")
    assert ours.key(Cuts(kv_groups=1)) != random.key(Cuts(kv_groups=1))


def test_names_that_are_not_known_are_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no such strategy.*'best'.*shortgpt"):
        strategy_of("best")
    with pytest.raises(UsageError, match=r"no such importance.*'size'.*fluctuation"):
        strategy_of("edgeprune", importance="size")
    with pytest.raises(UsageError, match=r"hidden channels.*'obs'.*one of magnitude, taylor"):
        strategy_of("llm-pruner-channel", importance="obs")
    with pytest.raises(UsageError, match=r"no such effort.*'utmost'.*low, medium, high"):
        effort_of("utmost")


def test_without_repair_heads_and_channels_are_not_chosen_as_if_there_were() -> None:
    assert strategy_of("edgeprune").criterion.method is Method.OBS
    bare = strategy_of("edgeprune", repair=False)
    assert bare.repair is Repair.NONE
    assert bare.criterion == Criterion(method=Method.ENERGY)
    assert strategy_of("flap", repair=False).criterion.method is Method.FLUCTUATION


def test_a_model_without_tokenizer_cannot_be_calibrated(tmp_path: Path) -> None:
    model = Checkpoint(make_tiny(tmp_path / "model"))
    cutting = _cutting(model, strategy_of("edgeprune"), tmp_path / "scratch")
    with pytest.raises(InputError, match=r"no tokenizer"):
        cutting.write(Cuts(ffn_channels=32), tmp_path / "out")
