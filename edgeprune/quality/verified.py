"""No artifact leaves that was not opened once and held against its checkpoint.

In: a checkpoint and a number format. Out: an artifact whose logits agree with the checkpoint's on a
few tokens, or an error. Floats must agree closely. A quantized model's differ by what its format
loses, more than a mistake in the order of some rows would show: so the model's first layers are
exported in floats, too, and those must agree. Of a model too large to be computed here beside the
artifact, the first layers are compared, and the whole artifact is asked for logits, as long as this
machine's RAM holds it.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import psutil
from numpy.typing import NDArray

from edgeprune.errors import EdgePruneError
from edgeprune.export.artifact import artifact_name, export
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.files import model_bytes
from edgeprune.model.onnx_formats import FLOAT, GRAPH, is_onnx
from edgeprune.model.quantization import tensor_bytes
from edgeprune.model.shape import Shape
from edgeprune.quality.windows import opened

if TYPE_CHECKING:
    import torch

PROBE = 16  # tokens that are compared
FIRST_LAYERS = 2
LARGE_BYTES = 2**30  # in float32: models above are not computed whole
# By so much of the largest logit may a float artifact's differ from the checkpoint's. llama.cpp
# rounds activations to F16 before it multiplies them with weights in F16.
CLOSE = {"F32": 1e-3, FLOAT: 1e-3, "F16": 2e-2}
HELD = 0.5  # of the free RAM may an artifact take that is opened whole; it may be repacked there
RELATED = 0.3  # correlation of a quantized artifact's logits with the checkpoint's, at least
Logits = NDArray[np.float32]


def export_verified(
    checkpoint: Checkpoint, tokenizer: Path | None, destination: Path, *, quant: str, name: str
) -> None:
    """Write `checkpoint` as an artifact, and hold it against the checkpoint.

    Args:
        checkpoint: The model.
        tokenizer: `tokenizer.gguf`, or None for an artifact that knows token ids only.
        destination: What to write; there is nothing when it does not agree.
        quant: A number format of GGUF or ONNX.
        name: What the artifact calls itself; GGUF only.

    Raises:
        InputError: The model cannot be exported, or its runtime does not load the artifact.
        EdgePruneError: The artifact computes something else than the checkpoint.
    """
    with TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as scratch:
        made = Path(scratch) / destination.name
        export(checkpoint, tokenizer, made, quant=quant, name=name)
        _verify(checkpoint, made, quant, Path(scratch))
        made.replace(destination)


def _verify(checkpoint: Checkpoint, artifact: Path, quant: str, scratch: Path) -> None:
    """Hold an artifact against its checkpoint, as far as the size of the model allows."""
    is_large = tensor_bytes(checkpoint.shape, "F32") > LARGE_BYTES
    if quant in CLOSE and not is_large:
        check_parity(checkpoint, artifact, quant)
        return
    is_held = model_bytes(artifact) < HELD * psutil.virtual_memory().available
    found = _logits(artifact, _probe(checkpoint)) if is_held else None
    if found is not None and not np.isfinite(found).all():
        raise _differs(checkpoint, quant, "logits that are no numbers")
    if found is not None and not is_large:
        related = _correlation(found, _expected(checkpoint))
        if not related >= RELATED:
            raise _differs(checkpoint, quant, f"logits that correlate by {related:.2f}")
    floats = FLOAT if is_onnx(quant) else "F16"
    head = checkpoint.first_layers(telling_layers(checkpoint.shape))
    part = scratch / artifact_name("first-layers", floats)
    export(head, None, part, quant=floats, name="first-layers")
    check_parity(head, part, floats)


def telling_layers(shape: Shape) -> int:
    """Return how many of the first layers have one of each kind among them; two at least."""
    kinds = [(i in shape.local_layers, i in shape.unrotated_layers)
             for i in range(shape.num_hidden_layers)]
    return max(FIRST_LAYERS, *(1 + kinds.index(kind) for kind in set(kinds)))


def check_parity(checkpoint: Checkpoint, artifact: Path, quant: str) -> None:
    """Hold a float artifact against its checkpoint: a prompt, and of ONNX a decode step after it.

    Raises:
        EdgePruneError: Their logits differ by more than `CLOSE` of the largest.
    """
    tokens, theirs = _probe(checkpoint), _expected(checkpoint)
    off = float(np.abs(_logits(artifact, tokens) - theirs).max())
    if is_onnx(quant):
        off = max(off, float(np.abs(_decoded(artifact, tokens) - theirs[-1]).max()))
    if not off <= CLOSE[quant] * float(np.abs(theirs).max()):
        raise _differs(checkpoint, quant,
                       f"logits {off:.2g} off, of {float(np.abs(theirs).max()):.2g}")


def _differs(checkpoint: Checkpoint, quant: str, got: str) -> EdgePruneError:
    return EdgePruneError(
        f"{checkpoint.path} as {quant} computes something else than the checkpoint", got=got,
        remedy="please report this, with the model's config.json")


def _probe(checkpoint: Checkpoint) -> list[int]:
    found: list[int] = np.random.default_rng(0).integers(
        0, checkpoint.shape.vocab_size, PROBE).tolist()
    return found


def _expected(checkpoint: Checkpoint) -> Logits:
    """Return the checkpoint's own logits of the probe, `(PROBE, vocab_size)`, float32."""
    import torch  # noqa: PLC0415 - heavy

    from edgeprune.pruning.forward import output_of  # noqa: PLC0415
    from edgeprune.pruning.surgery import cut_layers  # noqa: PLC0415

    with torch.inference_mode():
        output = output_of(checkpoint, cut_layers(checkpoint, Cuts(), {}),
                           torch.tensor([_probe(checkpoint)]))
        logits: torch.Tensor = output.head.logits(output.states)[0]
    return np.asarray(logits.cpu().numpy())


def _logits(artifact: Path, tokens: list[int]) -> Logits:
    """Return the artifact's logits, `(n_tokens, vocab_size)`."""
    with opened(artifact, context=PROBE, exact=True) as model:
        return model.logits(tokens)


def _decoded(artifact: Path, tokens: list[int]) -> Logits:
    """Return the logits after the last token, `(vocab_size,)`, as a target computes them."""
    from edgeprune.on_target.engine_onnx import Engine  # noqa: PLC0415

    engine = Engine({"path": str(artifact / GRAPH), "threads": 1, "n_prompt": len(tokens),
                     "n_new": 1}, artifact)
    engine.evaluate(np.array([tokens[:-1]], dtype=np.int64))
    return np.asarray(engine.evaluate(np.array([tokens[-1:]], dtype=np.int64)))


def _correlation(ours: Logits, theirs: Logits) -> float:
    """Return how far two models' logits go together, those of each token about their mean."""
    a, b = (logits - logits.mean(axis=1, keepdims=True) for logits in (ours, theirs))
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-30))
