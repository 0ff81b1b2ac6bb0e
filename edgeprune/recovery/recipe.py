"""Recipes of training, and what a training came to. Pure, no torch.

In: a name of `RECIPES`, and the user's changes. Out: a `Recipe`; of a training, a `Recovered`.

`distill` learns the unpruned model's predictions (Hinton et al., arXiv:1503.02531) and, as much as
is wanted, the text; `sft` the text alone. Either trains all weights, or adapters of low rank (LoRA,
arXiv:2106.09685), which are merged into the weights at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from edgeprune.errors import UsageError
from edgeprune.extras import check_extra
from edgeprune.records import Record


class Method(StrEnum):
    """What is learnt."""

    DISTILL = "distill"
    SFT = "sft"


class Pruned(NamedTuple):
    """A pruned model and where it comes from.

    Attributes:
        path: Its checkpoint directory.
        original: That of the unpruned model, when it is known.
        layers: Layers of the unpruned model that it kept; None when that is not known.
    """

    path: Path
    original: Path | None
    layers: Sequence[int] | None = None


class Recipe(Record):
    """How a pruned model is trained.

    Attributes:
        name: Of `RECIPES`, which it began as.
        method: What is learnt.
        rank: Of the adapters (their alpha is twice that); 0 trains all weights.
        epochs: Times that the text is gone through.
        learning_rate: Of AdamW, at its highest: it rises over the first twentieth of the steps and
            falls as a cosine.
        batch: Examples of one step, of all processes together.
        micro_batch: Examples that one process holds at a time; the rest is accumulated.
        n_tokens: Of an example, at most.
        text_weight: Share of the text's own cross entropy in the loss, the rest is the divergence
            from the unpruned model's predictions; distillation only.
        hidden_weight: Of the hidden states' square error, relative to the square of the unpruned
            model's, the mean over tokens and layers that stayed; distillation only.
        seed: Of the order of examples, and of adapters.
    """

    name: str
    method: Method
    rank: int = Field(default=0, ge=0)
    epochs: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    batch: int = Field(default=4, ge=1)
    micro_batch: int = Field(default=4, ge=1)
    n_tokens: int = Field(default=512, ge=8)
    text_weight: float = Field(default=0.0, ge=0, le=1)
    hidden_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    seed: int = 0

    def describe(self) -> str:
        """Return the recipe in a few words."""
        what = f"LoRA of rank {self.rank}" if self.rank else "all weights"
        times = "one epoch" if self.epochs == 1 else f"{self.epochs:g} epochs"
        return f"{self.method}, {what}, {times}, learning rate {self.learning_rate:g}"

    def accumulation(self, processes: int) -> int:
        """Return how many micro-batches of each process make a step.

        Raises:
            UsageError: The batch is no multiple of what the processes take at a time.
        """
        steps, rest = divmod(self.batch, self.micro_batch * processes)
        if rest or not steps:
            raise UsageError(
                f"the batch must be a multiple of {processes} x {self.micro_batch}, the processes' "
                "micro-batches", got=self.batch, remedy="change --batch or --micro-batch")
        return steps


NEEDED = ("datasets", "peft", "trl")  # the extra `recover`
RECIPES = {recipe.name: recipe for recipe in (
    Recipe(name="distill", method=Method.DISTILL, learning_rate=1.5e-4, epochs=2),
    Recipe(name="distill-lora", method=Method.DISTILL, rank=16, learning_rate=5e-4, epochs=2),
    Recipe(name="sft", method=Method.SFT, learning_rate=5e-5),
    Recipe(name="sft-lora", method=Method.SFT, rank=16, learning_rate=5e-5),
)}


def check_installed() -> None:
    """Refuse to begin what would fail later for want of a package.

    Raises:
        UsageError: The extra `recover` is not installed.
    """
    check_extra("recover", NEEDED, "training")


def recipe_of(name: str, **changes: Any) -> Recipe:
    """Return a recipe, with the user's changes to it; those that are None are none.

    Raises:
        UsageError: A name that is not known, a number that makes no sense, or hidden states with
            nobody to learn them from.
    """
    if name not in RECIPES:
        raise UsageError("no such way to recover", got=name, remedy=f"one of {', '.join(RECIPES)}")
    made = {key: value for key, value in changes.items() if value is not None}
    try:
        found = Recipe.model_validate({**RECIPES[name].model_dump(), **made})
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(f"{wrong['loc'][0]} cannot be used: {wrong['msg']}",
                         got=wrong["input"]) from error
    if found.hidden_weight and found.method is not Method.DISTILL:
        raise UsageError("hidden states are learnt by distillation only", got=name,
                         remedy="leave --hidden out, or take --method distill")
    return found


class Training(Record):
    """What a run trains with.

    Attributes:
        recipe: How.
        data: The user's text; None takes the shipped calibration kinds.
        data_digest: Of its content.
    """

    recipe: Recipe
    data: Path | None
    data_digest: str | None


class KindLoss(Record):
    """Cross entropy on one kind of text that was not trained on, nats per token.

    Attributes:
        original: Of the unpruned model; None when it is not known.
        pruned: Of the pruned model.
        recovered: Of the trained one.
    """

    original: float | None
    pruned: float
    recovered: float

    @property
    def share(self) -> float | None:
        """The share of the loss that came back; None where none is known."""
        return None if self.original is None else share_back(
            self.original, self.pruned, self.recovered)


class Recovered(Record):
    """What a training came to.

    Attributes:
        recipe: How.
        text: What was learnt from.
        n_examples: Examples trained on.
        processes: That trained.
        seconds: Of training alone; since the last start, when it was killed before.
        began_at: The step that the last start went on from; 0 from the beginning.
        losses: Of each step, as the method defines it.
        n_held_out: Predicted tokens of text not trained on; the cross entropies are of them: the
            user's, or all of the evaluation kinds.
        original: The unpruned model's cross entropy, nats per token; None when it is not known.
        pruned: That of the pruned model.
        recovered: That of the trained one.
        kinds: The same on each evaluation kind.
    """

    recipe: Recipe
    text: str
    n_examples: int
    processes: int
    seconds: float
    began_at: int
    losses: tuple[float, ...]
    n_held_out: int
    original: float | None
    pruned: float
    recovered: float
    kinds: dict[str, KindLoss] = Field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """The share of the lost log-perplexity that came back; None where none is known lost."""
        return None if self.original is None else share_back(
            self.original, self.pruned, self.recovered)


def share_back(original: float, pruned: float, recovered: float) -> float | None:
    """Return the share of the lost log-perplexity that came back; None when none was lost.

    Args:
        original: Cross entropy of the unpruned model, nats per token.
        pruned: Of the pruned model.
        recovered: Of the trained one.
    """
    return (pruned - recovered) / (pruned - original) if pruned > original else None
