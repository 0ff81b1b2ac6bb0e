"""The options of a run, as the user gave them. Pure.

In: the command line's words. Out: `Options`, which the pipeline takes.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.model.quantization import DEFAULT_FORMAT
from edgeprune.pruning.calibration import Effort, Objective
from edgeprune.records import Record
from edgeprune.run.strategies import DEFAULT_STRATEGY


class Options(Record):
    """What the user asked for.

    Attributes:
        model: `smollm2`, a checkpoint directory, a GGUF file or a name on the Hub.
        adapter: Directory of a LoRA adapter that is merged into it.
        target: Name of a target.
        budget: In the grammar of `edgeprune.planning.budget`, or the path of a TOML file.
        quant: Number format, one of `edgeprune.model.quantization.FORMATS`, or `auto`.
        threads: CPU threads; `auto` measures which number is best; the target's when None.
        name: Name of the run directory; made from the rest when None.
        strategy: How the model is cut, one of `edgeprune.run.strategies.STRATEGIES`.
        importance: Another method by which heads and channels are chosen.
        repair: False leaves the weights that stay as they are.
        effort: How much calibration text is looked at.
        objective: By what plans are compared.
        calibration: The user's calibration text, a file or a directory; it has half of the weight.
        evaluate: The user's evaluation text, likewise; beside the shipped kinds.
        allow_quality_loss: Deploy an ONNX model however much its format loses by itself.
        recover: How the pruned model is trained, one of `edgeprune.recovery.recipe.RECIPES`; not at
            all when None.
        recover_data: What it is trained on; the shipped calibration kinds when None.
        judge: An LLM that judges the artifact: a URL or a .gguf file.
        judge_model: The endpoint's name for it.
        judge_prompts: What the models reply to.
        requests: Measured requests; 10 when None, 6 on an emulated target.
        fresh: Start over instead of going on with what the run directory holds.
        runs: Where run directories are.
        targets: Where target files are.
        profiles: Where profiles are.
        profile_seconds: For how long at most shapes are measured; `profile`'s own when None.
    """

    model: str
    target: str
    budget: str
    quant: str = DEFAULT_FORMAT
    threads: str | None = None
    strategy: str = DEFAULT_STRATEGY
    importance: str | None = None
    repair: bool = True
    effort: Effort = Effort.MEDIUM
    objective: Objective = Objective.WORST
    calibration: Path | None = None
    evaluate: Path | None = None
    name: str | None = None
    allow_quality_loss: bool = False
    recover: str | None = None
    recover_data: Path | None = None
    judge: str | None = None
    judge_model: str | None = None
    judge_prompts: Path | None = None
    requests: int | None = None
    fresh: bool = False
    runs: Path = Path("runs")
    targets: Path = Path("targets")
    profiles: Path = Path("profiles")
    profile_seconds: float | None = None
    adapter: Path | None = None
