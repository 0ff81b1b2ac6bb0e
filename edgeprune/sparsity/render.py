"""Tables and sentences about a sparsity's effect. Pure.

In: an `Effect`. Out: rows of a table, and lines. Never a claim that zeros make a CPU faster.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.sparsity.effect import Effect, MatrixZeros, Speed

HEADER = ("matrix", "zeros", "least in a layer", "most in a layer", "zeros left in the file")
NOTE = (
    "note: zeros like these, unstructured or N:M, do not make llama.cpp or onnxruntime on ARM CPUs "
    "faster, nor the file smaller: their kernels read and multiply every weight. 2:4 profits on "
    "NVIDIA Ampere and later (sparse tensor cores); unstructured zeros in dedicated sparse "
    "inference engines on x86 such as DeepSparse, and only at high sparsity. `edgeprune run` cuts "
    "whole layers, heads and channels, which is faster everywhere."
)
_MIB = 2**20


def effect_rows(effect: Effect) -> list[tuple[str, ...]]:
    """Return the zeros of each kind of matrix, all layers together, and of all matrices."""
    kinds: dict[str, list[MatrixZeros]] = {}
    for matrix in effect.matrices:
        kinds.setdefault(matrix.name.split(".")[-2], []).append(matrix)
    rows = [_row(kind, matrices) for kind, matrices in kinds.items()]
    return [*rows, _row("all", effect.matrices)]


def _row(name: str, matrices: Sequence[MatrixZeros]) -> tuple[str, ...]:
    n_zeros = sum(matrix.n_zeros for matrix in matrices)
    share = n_zeros / sum(matrix.n_weights for matrix in matrices)
    left = sum(matrix.n_surviving for matrix in matrices) / max(n_zeros, 1)
    fractions = [matrix.zero_fraction for matrix in matrices]
    return (name, *(f"{x:.2%}" for x in (share, min(fractions), max(fractions), left)))


def effect_lines(effect: Effect) -> list[str]:
    """Return quality, size and speed before and after, and what such zeros are good for."""
    lines = [(
        f"{effect.quant}: {effect.surviving_fraction:.1%} of the zeros are still exactly zero in "
        f"the file; size {effect.file_bytes_dense / _MIB:.1f} MiB dense, "
        f"{effect.file_bytes_sparse / _MIB:.1f} MiB sparse"
    )]
    if effect.perplexity_dense is not None and effect.perplexity_sparse is not None:
        lines.append(f"perplexity: {effect.perplexity_dense:.2f} dense, "
                     f"{effect.perplexity_sparse:.2f} sparse (x "
                     f"{effect.perplexity_sparse / effect.perplexity_dense:.2f})")
    else:
        lines.append("perplexity: not told, the model has no tokenizer")
    if effect.speed is not None:
        lines += speed_lines(effect.speed)
    return [*lines, NOTE]


def speed_lines(speed: Speed) -> list[str]:
    """Return what was measured on the target."""
    dense = speed.comparison.baseline
    emulated = ", emulated" if dense.emulated else ""
    requests, work = len(dense.token_ns), dense.workload
    lines = [(f"time on {dense.target}{emulated}, sparse by dense, p50 of {requests} requests in "
              f"turn ({work.n_new} tokens after {work.n_prompt}), with the 95 % interval:")]
    for name, ratio in (("a request", speed.latency_ratio), ("a token", speed.token_ratio)):
        lines.append(f"  {name}: x {ratio.point:.3f} ({ratio.low:.3f} to {ratio.high:.3f})")
    lines += [f"  disturbed: {what}" for what in speed.comparison.disturbances]
    return lines
