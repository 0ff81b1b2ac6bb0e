"""What people read of a training. Pure.

In: a `Recovered`. Out: text.
"""

from __future__ import annotations

import math

from edgeprune.recovery.recipe import Recovered


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
    return lines


def share_in_words(share: float) -> str:
    """Return how much of the lost log-perplexity came back."""
    more = ", more than was lost: the kind of text was learnt, too" if share > 1 else ""
    return f"{share:.1%} of the lost log-perplexity came back{more}"
