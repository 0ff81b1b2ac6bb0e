"""What a shape costs on a target, and the model that predicts it. Pure, no torch.

In: a `LlamaShape`. Out: a `Cost`. `edgeprune.profiling.fit` makes a `CostModel` from measured
shapes; it holds for shapes of the same hidden size and vocabulary.

Decoding reads every weight once for each token, so a cost is
`fixed + layers * (layer + attention_weights * a + ffn_weights * f)`: the fixed part is the output
head and what a token costs at all, `layer` norms and launches, `a` what a weight of q, k, v and o
costs, `f` one of gate, up and down. The four are fitted to the measured shapes with none of them
negative. The size of the file is not fitted: it is known to the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeprune.model.quantization import tensor_bytes
from edgeprune.model.shape import LlamaShape
from edgeprune.records import Record

METRICS = ("ttft_ms", "token_ms", "ram_bytes")  # what is fitted, and corrected by measurements


class Cost(Record):
    """What a shape costs: time to first token, each further token, peak RAM, file size."""

    ttft_ms: float
    token_ms: float
    ram_bytes: float
    file_bytes: float

    def latency_ms(self, n_new: int) -> float:
        """Milliseconds for a whole request of `n_new` tokens, the first one included."""
        return self.ttft_ms + (n_new - 1) * self.token_ms

    @property
    def decode_tokens_per_s(self) -> float:
        """New tokens in a second after the first."""
        return 1e3 / self.token_ms

    def scaled(self, factors: Mapping[str, float]) -> Cost:
        """Return the cost with each metric multiplied by its factor (1 where none is given)."""
        changed = {name: getattr(self, name) * factors.get(name, 1.0) for name in METRICS}
        return self.model_copy(update=changed)

    def ratios(self, other: Cost) -> dict[str, float]:
        """Return this cost divided by `other`, metric by metric."""
        return {name: getattr(self, name) / getattr(other, name) for name in METRICS}


class CostModel(Record):
    """Fitted coefficients by metric, and the worst relative residual of each fit.

    Weights are counted in millions, to keep the numbers of one size.

    Attributes:
        coefficients: By metric, what `features` are multiplied with.
        worst_residual: By metric, the largest relative error on the measured shapes.
        quant: Number format of the files.
        header_bytes: What a file holds besides its tensors: metadata, the tokenizer.
    """

    coefficients: dict[str, tuple[float, float, float, float]]
    worst_residual: dict[str, float]
    quant: str
    header_bytes: int

    def predict(self, shape: LlamaShape) -> Cost:
        """Predict the cost of a shape."""
        row = features(shape)
        fitted = {name: float(row @ self.coefficients[name]) for name in METRICS}
        return Cost(file_bytes=tensor_bytes(shape, self.quant) + self.header_bytes, **fitted)

    def with_header_of(self, shape: LlamaShape, file_bytes: int) -> CostModel:
        """Return the model for files with the header of a real one; profiled ones lack a tokenizer.

        A header also lists the tensors, some 500 bytes for each layer, which is left out: files of
        fewer layers are smaller than predicted by that.
        """
        header = file_bytes - tensor_bytes(shape, self.quant)
        return self.model_copy(update={"header_bytes": header})


def features(shape: LlamaShape) -> NDArray[np.float64]:
    """Return what the cost of a shape is linear in, `(4,)`."""
    layers = shape.num_hidden_layers
    return np.array([1.0, layers, layers * shape.attention_weights / 1e6,
                     layers * shape.ffn_weights / 1e6])
