"""Sentences about a training. Pure.

In: a `Recovered`. Out: text.
"""

from __future__ import annotations

import math

from edgeprune.recovery.recipe import KindLoss, Recovered


def recovery_lines(found: Recovered) -> list[str]:
    """Return what a training came to, a line for each part."""
    recipe, losses = found.recipe, found.losses
    tenth = max(len(losses) // 10, 1)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    processes = "" if found.processes == 1 else f" in {found.processes} processes"
    after = math.exp(found.recovered)
    lines = [
        (f"{recipe.describe()}: {len(losses)} steps of {recipe.batch} examples of {found.text}, "
         f"{found.seconds / 60:.1f} min{processes}; loss {first:.3f} -> {last:.3f}"),
        f"perplexity on {found.n_held_out} tokens not trained on: pruned "
        f"{math.exp(found.pruned):.2f}, trained {after:.2f}"
        + ("" if found.original is None else f", unpruned {math.exp(found.original):.2f}")]
    if found.share is not None:
        lines.append(share_in_words(found.share))
    elif found.original is not None:
        lines.append("pruning had lost nothing on that text")
    worst_first = sorted(found.kinds.items(), key=lambda one: -_lost(one[1]))
    return [*lines, *(_kind_line(kind, loss) for kind, loss in worst_first)]


def _lost(loss: KindLoss) -> float:
    """Return what a trained model still lacks; without an unpruned one, what it lost by training.

    In nats per token.
    """
    return loss.recovered - (loss.pruned if loss.original is None else loss.original)


def _kind_line(kind: str, loss: KindLoss) -> str:
    back = "" if loss.share is None else f", {loss.share:.1%} came back"
    if loss.recovered > loss.pruned:
        back = ", worse than before it was trained"
    if loss.original is None:
        return f"  {kind}: {loss.pruned:.3f} -> {loss.recovered:.3f} nats per token{back}"
    before, after = (nats - loss.original for nats in (loss.pruned, loss.recovered))
    return (f"  {kind}: {before:+.3f} -> {after:+.3f} nats per token over the unpruned model"
            f"{back}")


def share_in_words(share: float) -> str:
    """Return how much of the lost log-perplexity came back."""
    more = ", more than was lost: the kind of text was learnt, too" if share > 1 else ""
    return f"{share:.1%} of the lost log-perplexity came back{more}"
