"""The text of `report.md`. Pure.

In: an `Outcome`. Out: Markdown. Numbers of an emulated machine are called so wherever they appear.
"""

from __future__ import annotations

from edgeprune.records import __version__
from edgeprune.report.outcome import Outcome
from edgeprune.report.tables import HEADER, KINDS, before_after, kind_rows, markdown_table
from edgeprune.report.words import plan_lines, verdict_lines

_NOTES = (  # how many windows of each kind is put in
    "Predictions come from the profile, corrected by measured/predicted of the round before; when "
    "the budget is relative they are shares of the unpruned model as measured beside the pruned, "
    "where both are in the same number format. Perplexity: of the artifact, on the host, "
    "WikiText-2 validation, 8 windows of 512 tokens, another part of which "
    "is calibrated on; by kind of text up to {windows} windows of each, spread over it, and "
    "nothing was calibrated on the sources of the kinds that come with edgeprune."
)


def report(outcome: Outcome) -> str:
    """Return `report.md`."""
    emulated = " (emulated: its speed is the emulator's)" if outcome.emulated else ""
    parts = [
        f"# {outcome.model} on {outcome.target}: {outcome.verdict}",
        "\n".join(verdict_lines(outcome)),
        f"Target: {outcome.facts.describe()}{emulated}",
        f"Runtime: `{outcome.system_info.strip()}`",
        (f"Format: {outcome.quant}{_compared(outcome)}. {outcome.threads} threads. Requests: "
         f"{outcome.requests} of {outcome.budget.n_new} new tokens after "
         f"{outcome.budget.n_prompt} prompt tokens, after a warm-up."),
        markdown_table(HEADER, before_after(outcome)),
        *(["## Quality, by kind of text", markdown_table(KINDS, kind_rows(outcome.kinds))]
          if outcome.kinds else []),
        "## Plan",
        "\n".join(plan_lines(outcome.plan)),
        _NOTES.format(windows=outcome.kinds.reading.windows if outcome.kinds else "some"),
        f"Made by edgeprune {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _compared(outcome: Outcome) -> str:
    other = outcome.reference
    return "" if other == outcome.quant else f" (the unpruned model beside it: {other})"
