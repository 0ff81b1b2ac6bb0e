"""Which zeros are asked for: the method, and a fraction or an N:M pattern. Pure, no torch.

In: what the user wrote, and the shape of the model. Out: a checked `Recipe`, and the matrices that
it is for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from enum import StrEnum

from pydantic import Field

from edgeprune.errors import UsageError, nearest
from edgeprune.model.shape import Shape
from edgeprune.model.tensors import TensorSpec, layer_specs
from edgeprune.records import Record


class Method(StrEnum):
    """How the weights that become zero are chosen."""

    MAGNITUDE = "magnitude"  # the smallest weights
    WANDA = "wanda"  # the smallest products of weight and input norm, arXiv:2306.11695
    SPARSEGPT = "sparsegpt"  # by the error they make, the rest repaired, arXiv:2301.00774


class Pattern(Record):
    """N:M sparsity: of every `group` consecutive weights of a row `kept` stay, at most."""

    kept: int = Field(ge=1)
    group: int = Field(ge=2)

    @property
    def zeros(self) -> int:
        """Weights of each group that become zero."""
        return self.group - self.kept

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


class Recipe(Record):
    """The zeros that a model gets, in every linear matrix of its layers.

    Attributes:
        method: How they are chosen.
        sparsity: Their share of the weights; with a pattern, what follows from it.
        pattern: N:M; None for zeros anywhere.
        percdamp: SparseGPT only: what is added to the Hessian's diagonal, as a share of its mean.
        blocksize: SparseGPT only: columns of a block.
    """

    method: Method
    sparsity: float = Field(gt=0, lt=1)
    pattern: Pattern | None = None
    percdamp: float = Field(default=0.01, gt=0)
    blocksize: int = Field(default=128, ge=1)

    @property
    def needs_activations(self) -> bool:
        """True when the choice depends on calibration text."""
        return self.method is not Method.MAGNITUDE

    def describe(self) -> str:
        """Return the recipe in a few words."""
        return f"{self.method} {self.pattern or format(self.sparsity, '.0%')}"


def read_recipe(
    method: str, sparsity: float | None = None, pattern: str | None = None,
    *, percdamp: float = 0.01, blocksize: int = 128,
) -> Recipe:
    """Read a recipe from what a user wrote.

    Args:
        method: Name of a `Method`.
        sparsity: Share of zeros; either this or `pattern`.
        pattern: Such as `2:4`, two of every four stay.
        percdamp: See `Recipe`.
        blocksize: See `Recipe`.

    Raises:
        UsageError: Something is unknown, out of bounds, or does not fit together.
    """
    if method.lower() not in set(Method):
        raise UsageError("unknown sparsity method", got=method,
                         remedy=nearest(method.lower(), Method))
    if (sparsity is None) == (pattern is None):
        raise UsageError(
            "either a sparsity or a pattern is needed",
            got="neither" if pattern is None else "both",
            remedy="--sparsity 0.5 zeroes half of the weights, --pattern 2:4 two of every four")
    if not (math.isfinite(percdamp) and percdamp > 0):
        raise UsageError("percdamp must be more than 0", got=percdamp, remedy="0.01 is usual")
    if blocksize < 1:
        raise UsageError("blocksize must be 1 or more", got=blocksize, remedy="128 is usual")
    known = {"method": Method(method.lower()), "percdamp": percdamp, "blocksize": blocksize}
    if pattern is not None:
        read = _read_pattern(pattern)
        if known["method"] is Method.SPARSEGPT and blocksize % read.group:
            raise UsageError(f"blocksize must be a multiple of {read.group} for pattern {read}",
                             got=blocksize, remedy="128 is usual")
        return Recipe(**known, pattern=read, sparsity=read.zeros / read.group)
    if not 0 < (sparsity or 0.0) < 1:
        raise UsageError("sparsity must be between 0 and 1, both excluded", got=sparsity,
                         remedy="0.5 zeroes half of the weights")
    return Recipe(**known, sparsity=sparsity)


def _read_pattern(text: str) -> Pattern:
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text.strip())
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise UsageError("a pattern is N:M with 0 < N < M: N of every M weights stay", got=text,
                         remedy="such as 2:4 or 4:8")
    return Pattern(kept=int(match[1]), group=int(match[2]))


def check_rows(recipe: Recipe, shape: Shape) -> None:
    """Check that every row of the matrices is a whole number of the pattern's groups.

    Raises:
        UsageError: One is not.
    """
    if recipe.pattern is None:
        return
    for spec in sparse_matrices(shape, 0):
        length = spec.dims(shape)[1]
        if length % recipe.pattern.group:
            raise UsageError(
                f"pattern {recipe.pattern} needs rows that are multiples of "
                f"{recipe.pattern.group}, {spec.name.split('.')[-2]}'s are not",
                got=length, remedy="take a pattern whose M divides it, or --sparsity")


def sparse_matrices(shape: Shape, layer: int) -> Iterator[TensorSpec]:
    """Yield the matrices of one layer that get zeros: q, k, v, o, gate, up and down."""
    return (spec for spec in layer_specs(shape, layer) if len(spec.axes) == 2)
