"""The loss of an ONNX number format by itself, and whether it is too much to be deployed.

In: a checkpoint and a format. Out: perplexities on the evaluation text, of an artifact in that
format and of the same model's float32 graph; a refusal with the figure where they are too far
apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from edgeprune.errors import EdgePruneError, InputError, QualityError
from edgeprune.export.artifact import artifact_name
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.onnx_formats import FLOAT
from edgeprune.model.quantization import tensor_bytes
from edgeprune.quality.evaluate import perplexity
from edgeprune.quality.results import Quality
from edgeprune.quality.verified import export_verified

MOST_LOSS = 0.03  # share of perplexity, beyond the float32 graph's
ALLOW = "--allow-quality-loss deploys it all the same"
FLOAT_RAM = 1.25  # bytes of RAM for each byte of a float32 graph (benchmarks/formats.py: 1.13)


def perplexity_as(
    checkpoint: Checkpoint, tokenizer: Path | None, quant: str, scratch: Path,
    *, notify: Callable[[str], None] = lambda _: None,
) -> Quality:
    """Return a model's perplexity in a number format; the artifact is deleted again.

    Args:
        checkpoint: The model.
        tokenizer: `tokenizer.gguf`.
        quant: The number format.
        scratch: An existing directory with room for the artifact.
        notify: Told what is being done just now.

    Raises:
        EdgePruneError: The float32 graph does not fit this machine's RAM, or computes something
            else than the checkpoint.
        InputError: The model has no tokenizer.
    """
    if tokenizer is None:
        raise InputError("a model without a tokenizer has no perplexity that could be compared",
                         got=str(checkpoint.path), remedy=ALLOW)
    need = FLOAT_RAM * tensor_bytes(checkpoint.shape, FLOAT)
    room = psutil.virtual_memory().available
    if quant == FLOAT and need > room:
        raise EdgePruneError(
            f"the float32 graph, which {checkpoint.path} is to be compared with, needs "
            f"{need / 2**30:.1f} GiB of RAM", got=f"{room / 2**30:.1f} GiB", remedy=ALLOW)
    with TemporaryDirectory(dir=scratch) as directory:
        artifact = Path(directory) / artifact_name("model", quant)
        notify(f"writing {quant}")
        export_verified(checkpoint, tokenizer, artifact, quant=quant, name="model")
        return perplexity(artifact, notify=notify)


def loss_of(quantized: Quality, exact: Quality) -> float:
    """Return by what share of the float32 graph's perplexity a quantized model's is higher."""
    return quantized.perplexity / exact.perplexity - 1


def check_loss(quant: str, quantized: Quality, exact: Quality) -> None:
    """Refuse a quantized model that loses too much.

    Raises:
        QualityError: Its perplexity is more than `MOST_LOSS` above the float32 graph's.
    """
    if (loss := loss_of(quantized, exact)) > MOST_LOSS:
        raise QualityError(
            f"{quant} raises perplexity by {loss:.1%}, from {exact.perplexity:.2f} (float32) to "
            f"{quantized.perplexity:.2f}; {MOST_LOSS:.0%} are allowed", remedy=ALLOW)
