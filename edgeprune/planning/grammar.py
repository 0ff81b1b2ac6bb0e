"""The grammar of budgets: text is read into a `Budget`.

In: text such as `100 tokens at p90 < 2 s, ram < 16 GB`, or a TOML file that holds such text. Out: a
`edgeprune.planning.budget.Budget`. Pure, but for reading that file.

Grammar (parts joined by commas; blanks and case do not matter):

    N tokens [after P] [at pQ] < TIME | PERCENT   a whole request: N new after P prompt tokens
    ttft [at pQ] < TIME | PERCENT                 time to the first new token
    decode > NUMBER tokens/s | PERCENT            new tokens in a second after the first
    ram < SIZE | PERCENT                          peak RAM of the process that runs the model
    size < SIZE | PERCENT                         the artifact's file
    ppl_ratio < NUMBER                            perplexity, divided by the unpruned model's
    kl < NUMBER                                   mean KL divergence from it, nats per token
    judge_loss < NUMBER %                         pairs that an LLM judge holds for lost, less won
    context >= NUMBER                             tokens that the context must hold
    TIME: ms, s, min    SIZE: B, KB, MB, GB, KiB, MiB, GiB
    PERCENT: of the unpruned model in the same number format, measured on the same target
    pQ: percentile of the requests, at least p1 and less than p100; p50 when left out

`<` may be written `<=`, and `>` `>=`; `context > 4095` and `context 4096` are read as
`context >= 4096`. One request size holds for the whole budget (`100 tokens after 32` is the
default), and one percentile for each metric. Context alone is no budget: it bounds no number.

The TOML file has one key, `budget`: a string in this grammar, or an array of such strings.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from edgeprune.errors import UsageError, nearest
from edgeprune.planning.budget import (
    DEFAULT_NEW,
    DEFAULT_PROMPT,
    MEDIAN,
    Budget,
    Constraint,
    Metric,
)

EXAMPLE = "for example '100 tokens < 2 s, ram < 16 GB' or '100 tokens after 32 < 75%'"
KEY = "budget"  # of the TOML file
_MS: dict[str, float] = {"ms": 1.0, "s": 1e3, "min": 60e3}
_BYTES: dict[str, float] = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}
_RATE: dict[str, float] = {"tokens/s": 1.0, "tok/s": 1.0, "t/s": 1.0}
_SMALLEST, _LARGEST = 1e-9, 1e15  # of the numbers in a budget: what is far from both overflows
_CONSTRAINT = re.compile(
    r"((?P<new>\d{1,9})\s*tokens?(\s*after\s*(?P<prompt>\d{1,9})(\s*tokens?)?)?"
    r"|(?P<name>ttft|decode|ram|size|ppl_ratio|kl|judge_loss))"
    r"(\s*at\s*p\s*(?P<percentile>\d+(\.\d+)?))?"
    r"\s*(?P<sign><=?|>=?)\s*(?P<number>\d+(\.\d+)?|\.\d+)\s*(?P<unit>%|[a-z/]+)?"
)
_CONTEXT = re.compile(r"context\s*(?P<sign><=?|>=?)?\s*(?P<number>\d{1,9})(\s*tokens?)?")


def read_budget(text: str) -> Budget:
    """Read a budget from its text, or from the TOML file that the text names.

    Args:
        text: In the grammar of this module, or the path of a `.toml` file.

    Raises:
        UsageError: No such file, a file of another form, or what `parse_budget` refuses.
    """
    if not text.strip().endswith(".toml"):
        return parse_budget(text)
    path = Path(text.strip())
    try:
        return parse_budget(_text_of(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error.what}", got=error.got, remedy=error.remedy) from error


def parse_budget(text: str) -> Budget:
    """Read a budget from its text.

    Raises:
        UsageError: Something that the grammar of this module does not know.
    """
    parts = [" ".join(part.split()) for part in text.split(",")]
    constraints, requests, contexts = list[Constraint](), set[tuple[int, int]](), list[int]()
    for i, part in enumerate(parts):
        if match := _CONTEXT.fullmatch(part.lower()):
            contexts.append(_context(match, part))
            parts[i] = f"context >= {contexts[-1]}"
            continue
        match = _CONSTRAINT.fullmatch(part.lower())
        if match is None:
            raise UsageError("the budget cannot be read", got=part or text, remedy=EXAMPLE)
        constraints.append(_constraint(match, part))
        if match["new"]:
            requests.add((int(match["prompt"] or DEFAULT_PROMPT), int(match["new"])))
    _check_percentiles(constraints, text)
    if not constraints:
        raise UsageError("a budget of only a context bounds nothing", got=text, remedy=EXAMPLE)
    n_prompt, n_new = _request(requests, text)
    return Budget(text=", ".join(parts), n_prompt=n_prompt, n_new=n_new,
                  constraints=tuple(constraints), context=max(contexts, default=None))


def _text_of(path: Path) -> str:
    """Return the budget in a TOML file."""
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the budget file cannot be read ({error.strerror})",
                         remedy=f"it holds a line such as {KEY} = '100 tokens < 2 s'") from error
    except ValueError as error:  # bad TOML, bad UTF-8
        raise UsageError(f"not a TOML file ({error})") from error
    for key in keys:
        if key != KEY:
            raise UsageError("unknown key", got=key, remedy=nearest(key, [KEY]))
    if KEY not in keys:
        raise UsageError(f"the key {KEY!r} is missing",
                         remedy=f"add {KEY} = '100 tokens < 2 s', or what you demand")
    found = keys[KEY]
    texts = found if isinstance(found, list) else [found]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"the key {KEY!r} must be a string or an array of strings", got=found,
                         remedy=EXAMPLE)
    return ", ".join(texts)


def _request(requests: set[tuple[int, int]], text: str) -> tuple[int, int]:
    """Return the prompt and the new tokens of the one request that a budget is about."""
    if len(requests) > 1:
        raise UsageError("the budget names two different requests", got=text,
                         remedy="one number of prompt and new tokens holds for all")
    n_prompt, n_new = next(iter(requests), (DEFAULT_PROMPT, DEFAULT_NEW))
    if n_prompt < 1 or n_new < 2:
        raise UsageError("a request has at least 1 prompt token and 2 new tokens", got=text,
                         remedy=EXAMPLE)
    return n_prompt, n_new


def _check_percentiles(constraints: list[Constraint], text: str) -> None:
    found: dict[Metric, float] = {}
    for c in constraints:
        if found.setdefault(c.metric, c.percentile) != c.percentile:
            raise UsageError(f"the budget names two percentiles of {c.metric.label}", got=text,
                             remedy="one percentile holds for each metric (p50 when left out)")


def _context(match: re.Match[str], part: str) -> int:
    sign = match["sign"] or ">="
    if sign[0] == "<":
        raise UsageError("the context is bounded with '>='", got=part,
                         remedy="for example 'context >= 4096'")
    number = int(match["number"]) + (sign == ">")
    if number < 1:
        raise UsageError("a context must hold more than zero tokens", got=part,
                         remedy="for example 'context >= 4096'")
    return number


def _constraint(match: re.Match[str], part: str) -> Constraint:
    metric = Metric.LATENCY if match["new"] else Metric[match["name"].upper()]
    wanted = ">" if metric is Metric.DECODE else "<"
    if match["sign"][0] != wanted:
        raise UsageError(f"{metric.label} is bounded with '{wanted}'", got=part, remedy=EXAMPLE)
    if not _SMALLEST <= float(match["number"]) <= _LARGEST:
        raise UsageError(f"a limit must be more than zero and at most {_LARGEST:g}", got=part,
                         remedy=EXAMPLE)
    limit = _limit(metric, float(match["number"]), match["unit"], part)
    return Constraint(metric=metric, limit=limit,
                      relative=match["unit"] == "%" and metric is not Metric.JUDGE_LOSS,
                      percentile=_percentile(metric, match["percentile"], part))


def _limit(metric: Metric, number: float, unit: str | None, part: str) -> float:
    """Return the largest allowed value of a metric, or its share of the unpruned model's."""
    if metric is Metric.JUDGE_LOSS:
        if unit != "%" or number > 100:
            raise UsageError(f"{metric.label} is a percentage of the prompts, at most 100 %",
                             got=part, remedy="for example 'judge_loss < 7 %'")
        return number / 100
    if metric.is_quality:
        if unit is not None:
            raise UsageError(f"{metric.label} is a number without a unit or a percentage", got=part,
                             remedy="for example 'ppl_ratio < 1.2' or 'kl < 0.1'")
        if metric is Metric.PPL_RATIO and number <= 1:
            raise UsageError("the perplexity ratio must be allowed more than 1, which is the "
                             "unpruned model's", got=part, remedy="for example 'ppl_ratio < 1.2'")
        return number
    if unit == "%":
        return 100 / number if metric is Metric.DECODE else number / 100
    units = {Metric.DECODE: _RATE, Metric.RAM: _BYTES, Metric.SIZE: _BYTES}.get(metric, _MS)
    if unit not in units:
        known = ", ".join(units)
        raise UsageError(f"{metric.label} needs a unit", got=part, remedy=f"known: {known}, %")
    return 1e3 / number if metric is Metric.DECODE else number * units[unit]


def _percentile(metric: Metric, written: str | None, part: str) -> float:
    if written is None:
        return MEDIAN
    if metric not in {Metric.LATENCY, Metric.TTFT}:
        raise UsageError(f"{metric.label} has no percentile", got=part,
                         remedy="'N tokens' and 'ttft' have one, for example 'ttft at p90 < 1 s'")
    if not 1 <= float(written) < 100:
        raise UsageError("a percentile is at least p1 and less than p100", got=part,
                         remedy="for example '100 tokens at p90 < 2 s'")
    return float(written)
