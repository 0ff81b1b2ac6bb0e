"""An LLM judges replies: those of an artifact against those of the unpruned model, pairwise.

In: an artifact, another, prompts, a judge: an OpenAI-compatible endpoint (the extra `eval`) or a
GGUF file. Out: wins, ties and losses of the artifact with a confidence interval of the share lost.

Each pair is shown in both orders (MT-Bench, arXiv:2306.05685, section 3.4: judges favour a place).
The judge's opinion in one order is, where its probabilities are known, that of A against that of
B, else its word; a pair is won when the opinions of both orders together favour the artifact. What
is neither A nor B nor a tie is nonsense, which is counted and left out. Opinions are kept in a
file as soon as they are there: what was judged is not asked again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field

from edgeprune.data import text_of
from edgeprune.data.kinds import Message
from edgeprune.data.lines import holds_lines
from edgeprune.errors import InputError
from edgeprune.quality.reply import reply
from edgeprune.quality.windows import opened
from edgeprune.records import Known, Record, digest, file_digest
from edgeprune.target.interval import Interval

LETTERS = ("A", "B", "C")
DECIDED = 0.5  # least probability of A, B and C together: below, the judge is not answering
MARGIN = 0.05  # so far from one half is a pair's mean opinion no tie
_WORD = re.compile(r"[^A-Za-z]*([ABC])(?![A-Za-z])")
_Z95 = 1.959964
_CONTEXT = 2048  # tokens of a prompt and its reply


class Replying(Record):
    """How artifacts reply.

    Attributes:
        n_new: Tokens at most.
        temperature: 0 is greedy.
        seed: Of what is drawn; the unpruned model draws with another.
    """

    n_new: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0


class Pair(NamedTuple):
    """Two replies to a prompt, in the order in which they are shown."""

    prompt: str
    first: str
    second: str


class Opinion(Record):
    """What a judge thinks of two replies in one order.

    Attributes:
        said: Its words.
        first: How much it favours the first, from 0 to 1; None when it said nonsense.
    """

    said: str
    first: float | None = Field(ge=0, le=1)


class Judge(Protocol):
    """Who can be asked.

    Attributes:
        name: Identifies it, and how it is asked.
        workers: Pairs that it takes at a time.
    """

    name: str
    workers: int

    def ask(self, pair: Pair) -> Opinion:
        """Return what it thinks of two replies, the first of which it is told to call A.

        Raises:
            JudgeError: It cannot be asked.
        """
        ...


class Judged(Record):
    """What a judge thinks of an artifact.

    Attributes:
        judge: Its name.
        wins: Pairs where the artifact's reply is better.
        ties: Where neither is.
        losses: Where the unpruned model's is.
        invalid: Where the judge said nonsense.
        loss: The share of the pairs lost, less the share won, with its 95 % interval; all of it
            from -1 to 1 when nothing was judged.
    """

    judge: str
    wins: int
    ties: int
    losses: int
    invalid: int
    loss: Interval


Result = Literal["win", "tie", "loss", "invalid"]


def judge_artifact(
    artifact: Path, original: Path, prompts: Sequence[str], judge: Judge, cache: Path,
    *, how: Replying | None = None, notify: Callable[[str], None] = lambda _: None,
) -> Judged:
    """Let a judge compare an artifact with the unpruned model.

    Args:
        artifact: A GGUF file or the directory of an ONNX model.
        original: The unpruned model, likewise.
        prompts: What both reply to.
        judge: Who decides.
        cache: A directory, where replies and opinions are kept.
        how: How they reply.
        notify: Told what is being done just now.

    Raises:
        InputError: A runtime refuses a file.
        JudgeError: The judge cannot be asked; what it has said is kept.
    """
    how = how or Replying()
    ours, theirs = (
        replies(path, prompts, how.model_copy(update={"seed": how.seed + i}), cache,
                notify=notify) for i, path in enumerate((artifact, original)))
    pairs = [Pair(prompt, *order) for prompt, one, other in zip(prompts, ours, theirs, strict=True)
             for order in ((one, other), (other, one))]
    opinions = _opinions(judge, pairs, cache / "opinions.jsonl", notify)
    outcomes = [result_of(*pair) for pair in zip(opinions[::2], opinions[1::2], strict=True)]
    return tally(judge.name, outcomes)


def result_of(ours_first: Opinion, ours_last: Opinion) -> Result:
    """Return what two opinions, one of each order, come to for the artifact. Pure."""
    if ours_first.first is None or ours_last.first is None:
        return "invalid"
    favour = ours_first.first - ours_last.first
    if abs(favour) <= 2 * MARGIN:
        return "tie"
    return "win" if favour > 0 else "loss"


def tally(judge: str, outcomes: Iterable[Result]) -> Judged:
    """Count outcomes; return the share lost with its interval. Pure.

    The interval is that of a difference of paired proportions, adjusted for small samples (Bonett
    and Price, 2012, Journal of Educational and Behavioral Statistics 37, eq. 9).
    """
    all_of = list(outcomes)
    wins, ties, losses, invalid = (
        all_of.count(kind) for kind in ("win", "tie", "loss", "invalid"))
    n = wins + ties + losses
    lost, won = (losses + 1) / (n + 2), (wins + 1) / (n + 2)
    half = _Z95 * math.sqrt((lost + won - (lost - won) ** 2) / (n + 2))
    point = (losses - wins) / n if n else 0.0
    low, high = (min(max(lost - won + side, -1.0), 1.0) for side in (-half, half))
    interval = (Interval(low=min(low, point), point=point, high=max(high, point)) if n else
                Interval(low=-1.0, point=0.0, high=1.0))
    return Judged(judge=judge, wins=wins, ties=ties, losses=losses, invalid=invalid, loss=interval)


def read_prompts(file: Path) -> list[str]:
    """Read prompts: of a .jsonl file the `prompt` of each line, else each line.

    Raises:
        InputError: The file cannot be read, or there are none.
    """
    found = list[str]()
    for number, line in enumerate(text_of(file, "prompts").splitlines(), 1):
        if not line.strip():
            continue
        if not holds_lines(file):
            found.append(line.strip())
            continue
        try:
            found.append(_prompt_of(json.loads(line)))
        except ValueError as error:
            raise InputError(f"{file}, line {number} is no prompt", got=line[:60],
                             remedy='each line is {"prompt": "..."}') from error
    if not found:
        raise InputError("there are no prompts", got=str(file), remedy="one a line")
    return found


def _prompt_of(value: Any) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise ValueError("no prompt")  # noqa: TRY004 - as bad JSON is
    return str(value["prompt"])


def opinion_of_word(said: str) -> Opinion:
    """Return the opinion in a judge's words. Pure."""
    match = _WORD.match(said)
    favour = {"A": 1.0, "B": 0.0, "C": 0.5}
    return Opinion(said=said, first=favour[match[1]] if match else None)


def opinion_of_probabilities(said: str, probabilities: Mapping[str, float]) -> Opinion:
    """Return the opinion in the probabilities of the letters to come first. Pure."""
    a, b, c = (probabilities.get(letter, 0.0) for letter in LETTERS)
    if a + b + c < DECIDED:
        return Opinion(said=said, first=None)
    return Opinion(said=said, first=min((a + c / 2) / (a + b + c), 1.0))


def replies(
    artifact: Path, prompts: Sequence[str], how: Replying, cache: Path,
    *, notify: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Return an artifact's replies to prompts; those in the cache are not made again."""
    notify(f"hashing {artifact.name}")
    known = Known(cache / "replies.jsonl")
    files = sorted(artifact.iterdir()) if artifact.is_dir() else [artifact]
    content = [file_digest(file) for file in files]
    keys = [digest(content, prompt, how) for prompt in prompts]
    missing = [(key, prompt) for key, prompt in zip(keys, prompts, strict=True)
               if key not in known]
    if missing:
        with opened(artifact, context=_CONTEXT) as model:
            for i, (key, prompt) in enumerate(missing):
                notify(f"{artifact.name} replies to prompt {i + 1} of {len(missing)}")
                tokens = model.chat([Message("user", prompt)])[-(_CONTEXT - how.n_new):]
                known.add(key, reply(model, tokens, how.n_new, temperature=how.temperature,
                                     seed=how.seed + i))
    return [known[key] for key in keys]


def _opinions(
    judge: Judge, pairs: Sequence[Pair], file: Path, notify: Callable[[str], None]
) -> list[Opinion]:
    """Ask what is not known yet, several pairs at a time; keep each opinion at once."""
    known = Known(file)
    keys = [digest(judge.name, pair) for pair in pairs]
    missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
    with ThreadPoolExecutor(judge.workers) as pool:
        futures = {pool.submit(judge.ask, pair): key for key, pair in missing.items()}
        try:
            for i, future in enumerate(as_completed(futures)):
                known.add(futures[future], future.result().model_dump(mode="json"))
                notify(f"{judge.name} judges: {i + 1} of {len(missing)}")
        except BaseException:  # ask no more, but keep what is being said just now
            wait([future for future in futures if not future.cancel()])
            for future, key in futures.items():
                if key not in known and not future.cancelled() and future.exception() is None:
                    known.add(key, future.result().model_dump(mode="json"))
            raise
    return [Opinion.model_validate(known[key]) for key in keys]
