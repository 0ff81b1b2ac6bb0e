"""Tables and sentences about an evaluation. Pure.

In: an `Evaluation`, scores. Out: text.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.quality.results import Evaluation, Step
from edgeprune.quality.tasks import Score

HEADER = ("step", "perplexity", "times", "KL mean", "KL p99", "same first choice")
SCORES = ("task", "metric", "value", "standard error", "examples")
_STEPS = (("pruning", "pruning"), ("quantization", "quantization"), ("total", "both together"))


def step_rows(found: Evaluation) -> list[tuple[str, ...]]:
    """Return what each step on the way to the artifact cost, a row for each."""
    steps: list[tuple[str, Step]] = [(label, step) for name, label in _STEPS
                                     if (step := getattr(found, name)) is not None]
    if len(steps) == 1:
        steps = [("from the original", steps[0][1])]
    return [(label, f"{step.before:.3f} -> {step.after:.3f}", f"{step.ratio:.4f}",
             f"{step.divergence.kl_mean:.4g}", f"{step.divergence.kl_p99:.4g}",
             f"{step.divergence.top1_agreement:.1%}") for label, step in steps]


def quality_line(found: Evaluation) -> str:
    """Return the perplexity, and what it was taken of."""
    return (f"{found.artifact}: perplexity {found.quality.perplexity:.3f} on {found.text}, "
            f"{found.reading.describe(found.n_windows)}, {found.quality.n_tokens} tokens predicted")


def score_rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """Return scores, a row for each."""
    return [(score.task, score.metric, f"{score.value:.4f}",
             "" if score.stderr is None else f"{score.stderr:.4f}", str(score.n_samples))
            for score in scores]
