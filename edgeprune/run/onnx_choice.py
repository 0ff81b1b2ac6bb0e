"""The choice of the ONNX format: accurate enough, and the faster of the two int8 formats.

In: the parts of a run. Out: the parts in the format that is taken, said why. Fails where that
format loses too much.

`onnx:int8` has two ways. Weight-only (`MatMulNBits`) keeps a scale for 32 weights and rounds
activations in blocks, too; dynamic (`DynamicQuantizeMatMul`) keeps one for each row and rounds all
activations of a product with one scale. Which is faster depends on the CPU's kernels, so they are
measured on the target; but only where both are good enough.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeprune.model.onnx_formats import FLOAT, INT8, INT8_DYNAMIC, is_quantized_onnx
from edgeprune.quality.loss import MOST_LOSS, check_loss, loss_of
from edgeprune.run.parts import Parts


def choose_onnx_format(parts: Parts, *, allow_loss: bool, say: Callable[[str], None]) -> Parts:
    """Return the parts in the format that is deployed; those of a GGUF format as they are.

    Args:
        parts: Of the format that the user named.
        allow_loss: Take it however much it loses.
        say: Told the choice and its reason.

    Raises:
        QualityError: The unpruned model loses too much in it.
    """
    artifacts, evaluator = parts.artifacts, parts.evaluator
    if not is_quantized_onnx(artifacts.quant):
        return parts
    if not allow_loss:
        exact, quantized = evaluator.unpruned_as(artifacts, FLOAT), evaluator.unpruned(artifacts)
        check_loss(artifacts.quant, quantized, exact)
        say(f"{artifacts.quant}: perplexity {quantized.perplexity:.2f}, of the float32 graph "
            f"{exact.perplexity:.2f}")
    return _faster_int8(parts, say) if artifacts.quant == INT8 else parts


def _faster_int8(parts: Parts, say: Callable[[str], None]) -> Parts:
    artifacts, bench, evaluator = parts
    exact, dynamic = (evaluator.unpruned_as(artifacts, q) for q in (FLOAT, INT8_DYNAMIC))
    if (loss := loss_of(dynamic, exact)) > MOST_LOSS:
        say(f"int8: weight-only (MatMulNBits); dynamic int8 would raise perplexity by {loss:.1%}, "
            f"more than {MOST_LOSS:.0%}")
        return parts
    ways = bench.compare_formats(artifacts, INT8, INT8_DYNAMIC)
    times = {quant: one.latency_ms() for quant, one in ways.measured.items()}
    taken = min(times, key=lambda quant: times[quant])
    say("int8: " + ", ".join(f"{quant} {ms:.0f} ms a request" for quant, ms in times.items())
        + f" on {bench.device.target.name}; {taken} is taken")
    if taken != artifacts.reference:
        bench.forget(artifacts.export_unpruned())
    return parts.in_format(taken, reference=taken)
