"""Cutting one model: statistics, losses of candidate cuts, plans, the weights of the chosen cuts.

    statistics -> importance -> losses -> (a plan) -> cut and repaired checkpoint

In: a checkpoint with its tokenizer, a strategy, an effort, a run directory. Out: losses for a
planner; plans by any recipe; checkpoints. No target is needed: that part is in
`edgeprune.run.bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from edgeprune.errors import InputError
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import (
    Cuts,
    Kept,
    LayerImportance,
    kept_hidden,
    kept_in_layer,
    kept_layers,
)
from edgeprune.planning.demand import Demand
from edgeprune.planning.greedy import Plan, least_loss
from edgeprune.planning.moves import describe_change
from edgeprune.planning.recipes import Planner, follow, joint_plans
from edgeprune.pruning import forward
from edgeprune.pruning.calibration import Calibration, Corpus, Effort, Objective, calibrate_on
from edgeprune.pruning.components import principal_components
from edgeprune.pruning.compress import repaired_layers
from edgeprune.pruning.gradients import Gradients, layer_gradients
from edgeprune.pruning.hidden import HiddenImportance, hidden_importance
from edgeprune.pruning.importance import Importance, layer_importance
from edgeprune.pruning.narrowing import Narrowing
from edgeprune.pruning.published import biased_layers, mapped_layers
from edgeprune.pruning.repair import FOLDS, FOLDS_ON_TRIAL
from edgeprune.pruning.sensitivity import Losses, LossScorer
from edgeprune.pruning.statistics import (
    SIMILARITY,
    Similarity,
    measure_statistics,
    read_hidden_moments,
    read_statistics,
)
from edgeprune.pruning.surgery import cut_layers, write_pruned
from edgeprune.records import digest
from edgeprune.run.strategies import Repair, Strategy
from edgeprune.rundir import RunDirectory


@dataclass(frozen=True)
class Cutting:
    """All that is done to one model on this machine, short of exporting it.

    Attributes:
        checkpoint: The unpruned model.
        model_key: Identifies its weights and tokenizer.
        tokenizer: The tokenizer that is deployed; None when the model has none.
        corpus: Calibration text.
        strategy: The recipe.
        effort: How much of the text is looked at.
        objective: By what plans are compared.
        run: Where scores lie: statistics, importance, losses.
        notify: Told what is being done just now.
    """

    checkpoint: Checkpoint
    model_key: str
    tokenizer: Path | None
    corpus: Corpus
    strategy: Strategy
    effort: Effort
    run: RunDirectory
    notify: Callable[[str], None] = lambda _: None
    objective: Objective = Objective.WORST

    def key(self, cuts: Cuts) -> str:
        """Identify the checkpoint that cuts lead to."""
        if cuts == Cuts():
            return digest(self.model_key, cuts)
        chooses = cuts.narrows_layers or cuts.hidden_channels > 0
        if not chooses and self.strategy.repair is Repair.NONE:
            return digest(self.model_key, cuts)
        return digest(self._importance_key, self.strategy.repair, cuts)

    def check_text(self) -> None:
        """Read the calibration text, before anything is measured.

        Raises:
            InputError: There is too little of it.
        """
        _ = self._calibration

    def plan(self, demand: Demand) -> Plan:
        """Plan as the strategy does.

        Raises:
            InfeasibleError: The budget cannot be held.
        """
        repaired = self.strategy.repair is Repair.LEAST_SQUARES
        if not repaired or self.strategy.planner is not Planner.JOINT or self.effort.finalists < 2:
            # nothing is built that could tell what components lose
            return self.sketch(demand)
        plans = joint_plans(self.checkpoint.shape, demand, self._score)
        return plans[0] if plans[0].cuts == Cuts() else self._best(plans, demand)

    def sketch(self, demand: Demand) -> Plan:
        """Plan by what candidates are scored at, with nothing built: to compare demands.

        Raises:
            InfeasibleError: The budget cannot be held.
        """
        def influence(first: int, count: int) -> float:  # statistics only where a recipe asks
            return self._similarity.influence(first, count)

        return follow(self.strategy.planner, self.checkpoint.shape, demand, self._score, influence)

    def least_loss(self, demand: Demand) -> float:
        """Return about what cuts lose at least that hold a demand, nats per token; inf if none can.

        Told by single moves for our planner, which takes a part of a sketch's time.
        """
        if self.strategy.planner is not Planner.JOINT:
            return 0.0
        return least_loss(self.checkpoint.shape, demand.budget, demand.limits, demand.predict,
                          self._score, demand.margin)

    def _best(self, plans: Sequence[Plan], demand: Demand) -> Plan:
        """Build the best of each plan, then what comes next to the one that loses the least."""
        finalists = [plan.cuts for plan in plans]
        losses = [self._built_loss(cuts, i) for i, cuts in enumerate(finalists, 1)]
        plan = plans[losses.index(min(losses))]
        for cuts in plan.finalists[1 : 1 + self.effort.finalists - len(plans)]:
            finalists.append(cuts)
            losses.append(self._built_loss(cuts, len(finalists)))
        cuts = finalists[losses.index(min(losses))]
        shape = cuts.shape(plan.base)
        change = (() if cuts == plan.cuts else
                  (f"{describe_change(plan.cuts, cuts)}: loses less when built",))
        return plan.model_copy(update={
            "cuts": cuts, "shape": shape, "cost": demand.predict(shape), "loss": min(losses),
            "finalists": tuple(finalists), "judged": tuple(losses),
            "refined": (*plan.refined, *change)})

    def plan_key(self, demand: Demand) -> str:
        """Identify a plan."""
        return digest(self._scoring_key, self.strategy.planner, self.effort.finalists,
                      self.effort.trying, self.effort.judging, self.objective,
                      self.checkpoint.shape, demand)

    def write(self, cuts: Cuts, directory: Path) -> None:
        """Cut the weights, repair what is left, write the checkpoint."""
        biased = self.strategy.repair is Repair.BIAS and cuts.narrows_layers
        hidden = kept_hidden(self._hidden.channels, cuts) if cuts.hidden_channels else None
        write_pruned(self.checkpoint, cuts, self._layers(cuts), directory, biased=biased,
                     hidden=hidden)

    # --- how it is done --------------------------------------------------------------------------

    @torch.inference_mode()
    def _built_loss(self, cuts: Cuts, number: int) -> float:
        """Return the divergence of a finished model, fitted to fewer windows, nats per token."""
        if (known := self._judged.get(cuts)) is not None:
            return self.objective.of(known)
        built = self._run(self._layers(cuts, trial=f"finalist {number}, "))
        (loss,) = forward.losses([built], self._unpruned, self._calibration.judging)
        self._judged.add(cuts, loss)
        return self.objective.of(loss)

    @cached_property
    def _judged(self) -> Losses:
        return Losses(self.run.path / "judged.jsonl",
                      digest(self._scoring_key, self.effort.trying, self.effort.judging, "built"))

    @cached_property
    def _unpruned(self) -> forward.Output:
        """What the unpruned model makes of the judging text."""
        return self._run(cut_layers(self.checkpoint, Cuts(), {}))

    def _run(self, layers: forward.Layers) -> forward.Output:
        return forward.output_of(self.checkpoint, layers, self._calibration.judging.tokens,
                                 forward.quick_dtype(self.checkpoint))

    def _layers(self, cuts: Cuts, *, trial: str = "") -> forward.Layers:
        """Yield the layers that stay, cut and repaired; on trial (of that name) with less text."""
        self.notify(f"{trial}cutting the weights")
        shape, kept = self.checkpoint.shape, dict[int, Kept]()
        if cuts.narrows_layers:
            kept = {i: kept_in_layer(shape, self._importance.layers[i], cuts)
                    for i in kept_layers(shape, cuts)}
        repair = self.strategy.repair if cuts != Cuts() else Repair.NONE
        if repair is Repair.LEAST_SQUARES:
            fitting = self._calibration.trying if trial else self._calibration.fitting
            basis = self._components[:, : -cuts.components] if cuts.components else None
            return repaired_layers(self.checkpoint, cuts, kept, fitting,
                                   lambda text: self.notify(trial + text), basis,
                                   FOLDS_ON_TRIAL if trial else FOLDS)
        if repair is Repair.MAP:
            return mapped_layers(self.checkpoint, cuts, kept, self._calibration.fitting.tokens,
                                 self.notify)
        if repair is Repair.BIAS and cuts.narrows_layers:
            return biased_layers(self.checkpoint, cuts, kept, self._statistics)
        return cut_layers(self.checkpoint, cuts, kept)

    @cached_property
    def _calibration_key(self) -> str:
        # the windows, not the effort's name: what it stands for may change between versions
        return digest(self.model_key, self.corpus.digest, self.effort.fitting, self.effort.scoring)

    @property
    def _importance_key(self) -> str:
        return digest(self._calibration_key, self.strategy.criterion)

    @property
    def _scoring_key(self) -> str:
        return digest(self._importance_key, self.strategy.repair)

    @cached_property
    def _calibration(self) -> Calibration:
        if self.tokenizer is None:
            raise InputError(f"{self.checkpoint.path} has no tokenizer, which calibration needs",
                             remedy="put tokenizer.json (or a tokenizer.gguf) beside the weights")
        return calibrate_on(self.corpus, self.tokenizer, self.effort)

    @cached_property
    def _statistics(self) -> Path:
        return self.run.make("statistics", self._calibration_key, "statistics",
                             self._measure)

    def _measure(self, path: Path) -> None:
        measure_statistics(self.checkpoint, self._calibration.measuring.tokens, path, self.notify)

    @cached_property
    def _components(self) -> torch.Tensor:
        return principal_components(read_hidden_moments(self._statistics))

    @cached_property
    def _similarity(self) -> Similarity:
        return Similarity.read(self._statistics / SIMILARITY)

    @cached_property
    def _importance(self) -> Importance:
        return self.run.record("importance", self._importance_key, "importance.json", Importance,
                               self._weigh)

    @cached_property
    def _hidden(self) -> HiddenImportance:
        return self.run.record(
            "hidden", self._importance_key, "hidden.json", HiddenImportance,
            lambda: hidden_importance(self.checkpoint, self.strategy.criterion,
                                      self._calibration.scoring.tokens, self.notify))

    def _weigh(self) -> Importance:
        criterion, shape = self.strategy.criterion, self.checkpoint.shape
        layers: Iterable[tuple[int, Gradients | None]] = (
            (layer, None) for layer in range(shape.num_hidden_layers))
        if criterion.needs_gradients:
            layers = layer_gradients(self.checkpoint, self._calibration.scoring.tokens, self.notify)
        found = dict[int, LayerImportance]()
        for layer, gradients in layers:
            self.notify(f"weighing heads and channels: layer {layer + 1} of "
                        f"{shape.num_hidden_layers}")
            statistics = (read_statistics(self._statistics, layer)
                          if criterion.needs_statistics else None)
            found[layer] = layer_importance(
                criterion, forward.load_layer(self.checkpoint, layer), shape, statistics,
                gradients, layer)
        return Importance(layers=tuple(found[layer] for layer in sorted(found)))

    def _score(self, candidates: Sequence[Cuts]) -> list[float]:
        # on little text the divergence tells cuts apart better than the cross entropy; the recipe
        # that is published with the latter keeps it
        ours = self.strategy.planner is Planner.JOINT
        return [self.objective.of(loss) if ours else loss.nats for loss in self._scorer(candidates)]

    @cached_property
    def _scorer(self) -> LossScorer:
        repaired = self.strategy.repair is Repair.LEAST_SQUARES
        narrowing = Narrowing(self.checkpoint.shape, lambda layer: self._importance.layers[layer],
                              lambda: self._hidden.channels,
                              (lambda: self._statistics) if repaired else None)
        known = Losses(self.run.path / "sensitivity.jsonl", self._scoring_key)
        return LossScorer(self.checkpoint, self._calibration.scoring, narrowing, known,
                          self.notify)
