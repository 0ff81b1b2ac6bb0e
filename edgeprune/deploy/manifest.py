"""The manifest of a bundle: what is in it, what it promises, and how it is tried. Pure.

In: files, figures, a budget. Out: `manifest.json`, which is signed; `installer.py` reads it on the
target.
"""

from __future__ import annotations

from pydantic import Field

from edgeprune.planning.budget import Metric
from edgeprune.records import Record
from edgeprune.target.measurement import Workload

MANIFEST, SIGNATURE, CONFIG = "manifest.json", "manifest.json.sig", "config.json"
# what a server adds to a request that was measured without one, as a share
SLACK = 0.10


class File(Record):
    """A file of a bundle."""

    sha256: str
    size_bytes: int


class Limit(Record):
    """What the deployed version has to hold, in the metric's unit (`Metric`)."""

    metric: Metric
    percentile: float
    limit: float


class Gate(Record):
    """How an installed version is tried before it is used.

    Attributes:
        workload: The requests that are timed.
        prompts: Texts of about `workload.n_prompt` tokens, one for each timed request.
        question: A prompt.
        answer: How every reply to it begins; empty when the model is sure of no word.
        limits: What must hold; of the metrics of cost.
        slack: Share by which times may exceed their limits, for the server's own work.
    """

    workload: Workload
    prompts: tuple[str, ...] = Field(min_length=1)
    question: str
    answer: str
    limits: tuple[Limit, ...]
    slack: float = SLACK


class Manifest(Record):
    """All that is known of a bundle.

    Attributes:
        name: Of the model.
        version: Of the bundle; no two of a name are alike.
        files: By path within the bundle; the manifest and its signature are not among them.
        artifact: Path of the GGUF file, or of the directory of the ONNX model.
        quant: Number format.
        licence: Of the model, as its source says.
        architecture: What it runs on.
        cpu_flags: What the runtime was built for.
        python: Major and minor version that the runtime is for, "3.11".
        versions: Of edgeprune and of what runs the model.
        memory_max_bytes: More the service never gets.
        budget: As the user wrote it; empty without one.
        gate: How it is tried.
    """

    format: int = 1
    name: str
    version: str
    files: dict[str, File]
    artifact: str
    quant: str
    licence: str
    architecture: str
    cpu_flags: str
    python: str
    versions: dict[str, str]
    memory_max_bytes: int
    budget: str
    gate: Gate
