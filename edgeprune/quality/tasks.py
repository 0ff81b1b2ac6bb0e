"""Scores on tasks, by lm-evaluation-harness (the extra `eval`).

In: an artifact, tasks: files, or names that lm-eval knows. Out: each task's metrics with their
standard errors. A task file ending in .jsonl needs no network: its lines are either multiple choice
(`{"question", "choices", "answer"}`, the last the number of the right choice) or texts whose last
word is to be predicted (`{"text"}`, as LAMBADA, arXiv:1606.06031). One ending in .yaml is a task of
lm-eval's own kind. Names are looked up, and their data fetched, by lm-eval.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from edgeprune.data import text_of
from edgeprune.errors import InputError, UsageError
from edgeprune.quality.windows import opened
from edgeprune.records import Record

CONTEXT = 2048
REMEDY = ('each line is {"question": ..., "choices": [...], "answer": 0} or {"text": ...}')
_METRICS = {
    "choices": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "text": [{"metric": "acc"}, {"metric": "perplexity"}],
}


class Score(Record):
    """What a task's metric came to.

    Attributes:
        task: Its name.
        metric: Of lm-eval: acc, acc_norm, perplexity, ...
        value: Of the metric.
        stderr: Its standard error; None where lm-eval has none.
        n_samples: Examples.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n_samples: int


def task_scores(
    artifact: Path, tasks: Sequence[str], *, limit: int | None = None, threads: int | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> list[Score]:
    """Return what an artifact scores on tasks.

    Args:
        artifact: A GGUF file or the directory of an ONNX model.
        tasks: Paths of .jsonl or .yaml files, or names.
        limit: Examples of each task at most.
        threads: CPU threads; `windows.threads_for` tells how many by default.
        notify: Told what is being done just now.

    Raises:
        UsageError: lm-eval is not installed, or knows no such task.
        InputError: A file cannot be read, or the artifact.
    """
    try:
        import lm_eval  # noqa: PLC0415 - heavy, and an extra
        from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"tasks need lm-eval, which is not installed ({error})",
                         remedy="pip install 'edgeprune[eval]'") from error
    from edgeprune.quality.lm import ArtifactLM  # noqa: PLC0415

    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    asked = [_task(task) for task in tasks]
    notify("loading tasks")
    manager = TaskManager(
        include_path=[str(file.parent) for file in files] or None,
        # it reads 14 thousand files of tasks, for seconds
        include_defaults=not all(task.endswith((".yaml", ".yml", ".jsonl")) for task in tasks))
    with opened(artifact, threads, CONTEXT) as model, redirect_stdout(sys.stderr):  # it prints
        try:
            found = lm_eval.simple_evaluate(
                model=ArtifactLM(model, CONTEXT, notify), tasks=asked, limit=limit,
                task_manager=manager, log_samples=False, bootstrap_iters=100)
        except (KeyError, ValueError, OSError) as error:  # unknown names, no network, bad files
            raise UsageError(f"lm-eval cannot do the tasks ({str(error)[:200]})",
                             got=", ".join(tasks), remedy="names need the network; a .jsonl file "
                             "does not") from error
    return [score for name, results in found["results"].items()
            for score in _scores(name, results, found["n-samples"])]


def named_tasks(option: str | None) -> list[str]:
    """Return the tasks that are named, joined by commas; their files are looked at.

    Raises:
        InputError: One of these cannot be read.
    """
    tasks = [] if option is None else option.split(",")
    for task in tasks:
        _task(task)
    return tasks


def _scores(name: str, results: dict[str, Any], counts: dict[str, Any]) -> list[Score]:
    scores = []
    for key, value in results.items():
        metric, _, part = key.partition(",")
        if part and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            stderr = results.get(f"{metric}_stderr,{part}")
            scores.append(Score(
                task=name, metric=metric, value=float(value),
                stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
                n_samples=counts.get(name, {}).get("effective", 0)))
    return scores


def _task(task: str) -> str | dict[str, Any]:
    """Return a task as lm-eval takes it: a name, or a configuration."""
    if task.endswith((".yaml", ".yml")):
        return _name_of(Path(task))
    if not task.endswith(".jsonl"):
        return task
    path = Path(task)
    kind = _kind(path)
    return {
        "task": path.stem, "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
        "metric_list": [{**metric, "aggregation": "perplexity" if metric["metric"] == "perplexity"
                         else "mean", "higher_is_better": metric["metric"] != "perplexity"}
                        for metric in _METRICS[kind]],
        **({"output_type": "multiple_choice", "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"} if kind == "choices" else
           {"output_type": "loglikelihood", "doc_to_text": "{{text.rsplit(' ', 1)[0]}}",
            "doc_to_target": "{{' ' + text.rsplit(' ', 1)[1]}}"}),
    }


def _name_of(path: Path) -> str:
    for line in text_of(path, "task file").splitlines():
        if line.startswith("task:"):
            return line.partition(":")[2].strip().strip("\"'")
    raise InputError("the task file names no task", got=str(path), remedy="add 'task: NAME'")


def _kind(path: Path) -> str:
    """Check the lines of a task file; return what they are, `choices` or `text`.

    Raises:
        InputError: A line of another form, or none.
    """
    kinds = set()
    for number, line in enumerate(text_of(path, "task file").splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind = _kind_of(json.loads(line))
        except ValueError:
            kind = None
        if kind is None:
            raise InputError(f"{path}, line {number} is no example of a task", got=line[:60],
                             remedy=REMEDY)
        kinds.add(kind)
    if len(kinds) != 1:
        raise InputError("a task file holds examples of one form", got=str(path), remedy=REMEDY)
    return kinds.pop()


def _kind_of(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    text, choices, answer = (value.get(key) for key in ("text", "choices", "answer"))
    if isinstance(value.get("question"), str) and isinstance(choices, list):
        right = isinstance(answer, int) and 0 <= answer < len(choices)
        return "choices" if right and all(isinstance(c, str) for c in choices) else None
    return "text" if isinstance(text, str) and len(text.split()) > 1 else None
