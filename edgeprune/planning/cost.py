"""What a shape costs on a target, and the model that predicts it. Pure, no torch.

In: a `Shape` and a request. Out: a `Cost`. `edgeprune.profiling.fit` makes a `CostModel` from
measured shapes; it holds for shapes of the same hidden size and head_dim.

What is counted, and what its price is fitted to, none of them negative (times in ms):

- a further token (decoding): 1; layers; MB of weights read, by number type, the output head apart;
  attention, which grows with the tokens before it (`keys_looked_at`); of the MB of weights, keys
  and values, those that the CPU's caches cannot keep, and those that they must first take in;
- the first token (the prompt): batches of `UBATCH` tokens; layers of them; MB of weights read once
  for each; tokens times layers; tokens times MB, by type; MB for each token that is left over from
  whole fours; attention; the output head once;
- RAM beside what is known exactly (file, repacked weights, KV cache): the process; layers; what
  lies between the operators of a batch (activations), and the output.

The size of the file and of the KV cache are not fitted: they are known to the byte. onnxruntime
does not keep the file mapped: it packs each matrix into memory of its own, so that of an ONNX model
the MB of weights are features of RAM, too; it keeps the scores of a whole prompt's attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from edgeprune.model.layout import file_bytes
from edgeprune.model.onnx_formats import is_onnx
from edgeprune.model.quantization import HEAD, head_type, outer_bytes, weights_read
from edgeprune.model.runtimes import (
    KV_STEP,
    SPLIT_KV,
    context_tokens,
    kv_cache_bytes,
    kv_token_bytes,
    runtime_of,
    whole_steps,
)
from edgeprune.model.shape import Shape
from edgeprune.records import Record

METRICS = ("ttft_ms", "token_ms", "ram_bytes")  # what measurements correct
REPACKED = "repacked_bytes"


# Scale of the logistic distribution of what a cache of 1 MB keeps: on a shared Xeon, 1/8 to 3/20
# predicted left-out shapes best in one hour (errors a fifth smaller than with a sharp size); in
# another, when the cache kept less, no scale did.
CACHE_SPREAD = 1 / 8
OTHER = "other MB"  # price of a number type that no measured shape had
Features = dict[str, float]


class Cost(Record):
    """What a shape costs for one kind of request.

    Attributes:
        ttft_ms: Time to the first new token.
        token_ms: Mean time of each further one.
        ram_bytes: Peak RAM of the process, all included.
        file_bytes: The file, which is mapped into RAM.
        kv_cache_bytes: Keys and values of the whole context.
        repacked_bytes: Second copy of the weights that the kernels of the CPU want.
    """

    ttft_ms: float
    token_ms: float
    ram_bytes: float
    file_bytes: float
    kv_cache_bytes: float = 0.0
    repacked_bytes: float = 0.0

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
    """Fitted prices by metric and feature, and how far they are off.

    Attributes:
        prices: By metric (`METRICS` and `repacked_bytes`), what each feature costs.
        worst_residual: By metric, the largest relative error on the measured shapes.
        error: By metric, the relative error to expect of a prediction: typical (one sigma) over
            the measured shapes, each predicted by a fit to the others.
        quant: Number format of the files whose cost is predicted.
        threads: CPU threads.
        metadata_bytes: What a file holds before the list of its tensors: numbers, the tokenizer.
        cache_mb: What the caches keep from one token to the next; 0 where none was noticed.
    """

    prices: dict[str, Features]
    worst_residual: dict[str, float]
    error: dict[str, float]
    quant: str
    threads: int
    metadata_bytes: int
    cache_mb: float = 0.0

    def of(self, quant: str) -> CostModel:
        """Return the model of files in another number format, whose types were priced, too."""
        return self.model_copy(update={"quant": quant})

    def predict(
        self, shape: Shape, n_prompt: int, n_new: int, n_ctx: int | None = None
    ) -> Cost:
        """Predict the cost of a request.

        Args:
            shape: The shape.
            n_prompt: Prompt tokens.
            n_new: New tokens.
            n_ctx: Tokens that the context holds; those of the request when None.
        """
        room = context_tokens(n_prompt, n_new, n_ctx)
        file = file_bytes(shape, self.quant, self.metadata_bytes)
        repacked = self._price(REPACKED, repack_features(shape, self.quant))
        kv = kv_cache_bytes(shape, self.quant, room)
        rest = self._price("ram_bytes", ram_features(shape, self.quant, n_prompt, room))
        exact = {"file_bytes": file, "kv_cache_bytes": kv, REPACKED: repacked}
        return Cost(
            ttft_ms=self._price("ttft_ms", prompt_features(shape, self.quant, n_prompt)),
            token_ms=self._price("token_ms", token_features(
                shape, self.quant, n_prompt, n_new, room, self.threads, self.cache_mb)),
            ram_bytes=rest + sum(exact[name] for name in known_ram(self.quant)),
            **exact,
        )

    def fixed(self, shape: Shape, n_prompt: int) -> Cost:
        """Return the part of a cost that no pruning removes: what a model without layers takes."""
        file = outer_bytes(shape, self.quant) + self.metadata_bytes
        head = {"head MB": weights_read(shape, self.quant)[HEAD] / 1e6}
        rest = ram_features(shape, self.quant, n_prompt, n_prompt)
        kept = ("process", "logits", "head MB stored")
        batches = -(-n_prompt // runtime_of(self.quant).batch)
        return Cost(
            ttft_ms=self._price("ttft_ms", {"batch": batches, **head}),
            token_ms=self._price("token_ms", {
                "token": 1.0, **head, **uncached(head["head MB"], self.cache_mb)}),
            ram_bytes=(0 if is_onnx(self.quant) else file) + self._price("ram_bytes", {
                name: rest[name] for name in kept if name in rest}),
            file_bytes=file,
        )

    def _price(self, metric: str, features: Features) -> float:
        prices = self.prices[metric]
        other = prices.get(OTHER, 0.0)
        return sum(amount * prices.get(name, other) for name, amount in features.items())


def known_ram(quant: str) -> tuple[str, ...]:
    """Return which numbers of a `Cost` are parts of RAM that are known exactly."""
    return ("kv_cache_bytes",) if is_onnx(quant) else ("file_bytes", "kv_cache_bytes", REPACKED)


def roofline_token_ms(shape: Shape, quant: str, read_bytes_per_s: float) -> float:
    """Return the least milliseconds for a token: its weights read once at the memory's speed.

    Of the two roofs of the roofline model (Williams et al., 2009) the one that decoding is under.
    """
    return sum(weights_read(shape, quant).values()) * 1e3 / read_bytes_per_s


def token_features(
    shape: Shape, quant: str, n_prompt: int, n_new: int, n_ctx: int, threads: int,
    cache_mb: float = 0.0,
) -> Features:
    """Return what the time of a further token is linear in, as a mean over a request's."""
    heads = _busiest_heads(shape.num_attention_heads, n_prompt, n_new, n_ctx, threads,
                           runtime_of(quant).split_kv)
    attention = shape.num_hidden_layers * shape.head_dim * heads / 1e6
    read = read_mb(shape, quant, n_prompt, n_new)
    return {"token": 1.0, "layer": float(shape.num_hidden_layers), "attention": attention,
            **{f"{name} MB": size / 1e6 for name, size in weights_read(shape, quant).items()},
            **uncached(read, cache_mb), **warming(read, cache_mb, n_new)}


def read_mb(shape: Shape, quant: str, n_prompt: int, n_new: int) -> float:
    """Return the MB that a token reads and the next one again: weights, and keys and values."""
    depth = n_prompt + n_new / 2
    kv = kv_token_bytes(shape, quant) * depth
    return (sum(weights_read(shape, quant).values()) + kv) / 1e6


def uncached(mb: float, cache_mb: float) -> Features:
    """Return what of the MB read for each token is not found in a cache of about this size.

    What goes beyond the size comes from memory each time. (A cache that evicts the longest unused
    line would miss everything there; those of real CPUs do not.) The size that a model finds is
    not always the same: others share the cache, and addresses fall on its sets by chance. This is
    the mean over sizes of a logistic distribution.
    """
    if not cache_mb:
        return {}
    spread = CACHE_SPREAD * cache_mb
    return {"uncached MB": float(np.logaddexp(0.0, (mb - cache_mb) / spread)) * spread}


def warming(mb: float, cache_mb: float, n_new: int) -> Features:
    """Return the MB that the first tokens of a reply bring into the cache, a mean over them all.

    Another model's request, or the prompt, has been there before.
    """
    return {"warming MB": min(mb, cache_mb) / max(1, n_new - 1)} if cache_mb else {}


@lru_cache(maxsize=4096)
def _busiest_heads(
    heads: int, n_prompt: int, n_new: int, n_ctx: int, threads: int, split_kv: int
) -> float:
    """Return how many keys the busiest thread looks at for a further token, as a mean."""
    depths = range(n_prompt + 1, n_prompt + n_new)
    return sum(keys_looked_at(heads, depth, n_ctx, threads, split_kv)
               for depth in depths) / len(depths)


def keys_looked_at(
    heads: int, depth: int, n_ctx: int, threads: int, split_kv: int = SPLIT_KV
) -> int:
    """Return how many keys the busiest thread looks at in one layer for one token.

    Every query head looks at `depth` tokens. Below `split_kv` the threads share out the heads, from
    there on the cells of the cache, of which the last ones may be empty
    (`ggml_compute_forward_flash_attn_ext_f16`).
    """
    cells = min(n_ctx, max(KV_STEP, whole_steps(depth, KV_STEP)))
    if cells >= split_kv:
        return heads * min(depth, -(-cells // threads))
    return -(-heads // threads) * depth


def prompt_features(shape: Shape, quant: str, n_prompt: int) -> Features:
    """Return what the time to the first token is linear in."""
    layers, batches = shape.num_hidden_layers, -(-n_prompt // runtime_of(quant).batch)
    read = dict(weights_read(shape, quant))
    head = read.pop(HEAD)
    # a token looks at those before it; tiles of 64
    looks = n_prompt * (n_prompt + 64) / 2
    # kernels take tokens in fours, and those left over one by one, as in decoding
    left_over = n_prompt % 4
    return {"batch": float(batches), "layer": float(batches * layers),
            "weights MB": batches * sum(read.values()) / 1e6, "head MB": head / 1e6,
            "left over MB": left_over * sum(read.values()) / 1e6,
            "token layer": n_prompt * layers / 1e3,
            "attention": layers * shape.num_attention_heads * shape.head_dim * looks / 1e6,
            **{f"{name} MB": n_prompt * size / 1e8 for name, size in read.items()}}


def ram_features(shape: Shape, quant: str, n_prompt: int, n_ctx: int) -> Features:
    """Return what RAM beside what is known exactly (`known_ram`) is linear in.

    llama.cpp reserves activations for a whole batch. Where the kernel hands out huge pages,
    touching some rows takes the page whole; where it does not, only the rows of the prompt are
    taken.
    """
    most = runtime_of(quant).batch
    batch, reserved = min(n_prompt, most), min(n_ctx, most)
    outer = shape.hidden_size + shape.num_attention_heads * shape.head_dim
    features = {"process": 1.0, "layer": float(shape.num_hidden_layers),
                "activations": batch * outer / 1e6,
                "FFN activations": batch * shape.intermediate_size / 1e6,
                "logits": shape.vocab_size / 1e6}
    if is_onnx(quant):
        scores = shape.num_attention_heads * n_prompt * n_prompt / 1e6
        return {**features, "scores": scores, **{
            f"{name} MB stored": size / 1e6 for name, size in weights_read(shape, quant).items()}}
    return {**features, "reserved": reserved * outer / 1e6,
            "FFN reserved": reserved * shape.intermediate_size / 1e6}


def repack_features(shape: Shape, quant: str) -> Features:
    """Return the bytes of each number type that a CPU's kernels may want in an order of their own.

    A tied head is repacked like the others; the embedding itself stays as it is in the file.
    """
    read = weights_read(shape, quant)
    kind, head = head_type(shape, quant), read.pop(HEAD)
    return {f"{name} stored": float(size) for name, size in
            {**read, kind: read.get(kind, 0) + head}.items()}
