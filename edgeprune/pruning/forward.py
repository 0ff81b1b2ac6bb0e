"""A model's computation, one layer at a time, as functions of tensors.

In: hidden states and the weights of one layer. Out: hidden states. Head counts are read off the
weights, so the same function runs a pruned layer. Equal to transformers' decoder layers, which the
tests compare it with; written out here so that an 8B model needs one layer in RAM.

Shapes: b sequences, t tokens, h hidden_size, n query heads, k KV heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.rope import inverse_frequencies
from edgeprune.model.shape import Shape
from edgeprune.model.tensors import EMBEDDING, FINAL_NORM, PROJECTION, is_norm, layer_specs
from edgeprune.pruning.loss import Loss, worse_half
from edgeprune.pruning.sample import Sample

Weights = Mapping[str, Tensor]  # of one layer, by name within the layer
# Layers by original number, ascending, as a checkpoint stores them. What is in no layer may be
# among them, by its full names, when it is not as in the checkpoint: before all, or after all.
Layers = Iterable[tuple[int, Weights]]
BEFORE = -1
OUT, DOWN = "self_attn.o_proj", "mlp.down_proj"  # what adds to the hidden states
_NORM_AFTER = {OUT: "post_attention_layernorm.weight", DOWN: "post_feedforward_layernorm.weight"}
_JUDGED_TOKENS = 512  # whose logits are made at a time, in whole sequences


def compute_device() -> torch.device:
    """Return where calibration is computed: a GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quick_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype in which the products of a layer are had for calibration.

    bfloat16 of models that are stored in 16 bits, where the CPU has instructions for it
    (AVX512-BF16, AMX, ARM's BF16): on an EPYC of 2022 they take 0.45 of the time. Else float32.
    What is between the products, hidden states and sums over tokens, is float32 in any case.
    """
    is_quick = compute_device().type == "cpu" and multiplies_bfloat16()
    return torch.bfloat16 if is_quick and checkpoint.dtype.itemsize == 2 else torch.float32


@cache
def multiplies_bfloat16() -> bool:
    """Tell whether this CPU has instructions that multiply bfloat16."""
    about = Path("/proc/cpuinfo")
    flags = about.read_text(encoding="utf-8").split() if about.is_file() else []
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def load_layer(
    checkpoint: Checkpoint, layer: int, device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Read the weights of one layer, as they are applied, by their names within the layer.

    Those of norms are float32 in any case.
    """
    return applied({spec.within: checkpoint.tensor(spec.name).to(device)
                    for spec in layer_specs(checkpoint.shape, layer)}, checkpoint.shape, dtype)


def applied(weights: Weights, shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of a layer as they are applied, of such as a checkpoint stores."""
    return {name: weight.float() + shape.of.norm_offset if is_norm(name) else weight.to(dtype)
            for name, weight in weights.items()}


def in_dtype(weights: Weights, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of a layer for products in a dtype; those of norms stay as they are."""
    return {name: weight if is_norm(name) else weight.to(dtype)
            for name, weight in weights.items()}


def embed(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """Return the embeddings of token ids, `(b, t)` to `(b, t, hidden_size)`, float32."""
    return checkpoint.tensor(EMBEDDING)[tokens].float() * checkpoint.shape.embedding_scale


class Head(NamedTuple):
    """What makes logits of the last hidden states.

    Attributes:
        norm: Weight of the final norm, `(hidden_size,)`.
        projection: Output head, `(vocab_size, hidden_size)`.
        eps: Of the norm.
        scaling: What logits are divided by.
    """

    norm: Tensor
    projection: Tensor
    eps: float
    scaling: float = 1.0

    def logits(self, x: Tensor) -> Tensor:
        """Return `(..., vocab_size)` of hidden states `(..., hidden_size)`."""
        found = F.linear(rms_norm(x, self.norm, self.eps), self.projection)
        return found if self.scaling == 1 else found / self.scaling

    def keeping(self, hidden: Tensor) -> Head:
        """Return the head of a model that keeps only some hidden channels."""
        return self._replace(norm=self.norm[hidden], projection=self.projection[:, hidden])


def output_head(checkpoint: Checkpoint, device: torch.device | None = None) -> Head:
    """Read the final norm and the output head, float32."""
    tied = checkpoint.shape.tie_word_embeddings
    name = EMBEDDING if tied else PROJECTION
    norm = checkpoint.tensor(FINAL_NORM).to(device).float()
    return Head(norm + checkpoint.shape.of.norm_offset,
                checkpoint.tensor(name).to(device).float(), checkpoint.shape.rms_norm_eps,
                checkpoint.shape.logits_scaling)


class Positions(NamedTuple):
    """What attention knows of where tokens stand.

    Attributes:
        cos: Cosines of the rotary embedding, `(t, d)`.
        sin: Its sines.
        seen: Which tokens each token sees, `(t, t)`; all before it, and itself, when None.
    """

    cos: Tensor
    sin: Tensor
    seen: Tensor | None = None


def positions_of(
    shape: Shape, n_tokens: int, device: torch.device | None = None
) -> list[Positions]:
    """Return the positions of tokens as each layer knows them (RoFormer, eq. 34)."""
    kinds = [_positions(shape, n_tokens, device, local=local) for local in (False, True)]
    unrotated = Positions(torch.ones_like(kinds[0].cos), torch.zeros_like(kinds[0].sin))
    return [unrotated if layer in shape.unrotated_layers else kinds[layer in shape.local_layers]
            for layer in range(shape.num_hidden_layers)]


def _positions(
    shape: Shape, n_tokens: int, device: torch.device | None, *, local: bool
) -> Positions:
    number = torch.arange(n_tokens)
    angles = torch.outer(number, torch.tensor(inverse_frequencies(shape, local=local)))
    angles = torch.cat((angles, angles), dim=-1).to(device)
    back, seen = number[:, None] - number, None
    if local and n_tokens > shape.sliding_window:
        seen = ((back >= 0) & (back < shape.sliding_window)).to(device)
    return Positions(angles.cos(), angles.sin(), seen)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each vector to a root mean square of 1, then weigh (arXiv:1910.07467, eq. 4)."""
    return weight * unit_rms(x, eps)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """Scale each vector to a root mean square of 1, without weights; `(..., h)`."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def decoder_layer(
    x: Tensor, weights: Weights, shape: Shape, positions: Positions
) -> Tensor:
    """Run one decoder layer, `(b, t, h)` to `(b, t, h)`."""
    x = x + project_out(attention_heads(x, weights, shape, positions), weights, shape)
    return x + project_down(ffn_channels(x, weights, shape), weights, shape)


@torch.no_grad()
def run_layer(
    states: Tensor, weights: Weights, shape: Shape, positions: Positions
) -> Tensor:
    """Run one decoder layer on many windows, one after another, `(b, t, h)` to `(b, t, h)`.

    All at once would hold every FFN channel of every token.
    """
    return torch.cat([decoder_layer(window, weights, shape, positions)
                      for window in states.split(1)])


def attention_heads(
    x: Tensor, weights: Weights, shape: Shape, positions: Positions
) -> Tensor:
    """Return what each query head attends to, before o_proj: `(b, t, n * d)`."""
    y = rms_norm(x, weights["input_layernorm.weight"], shape.rms_norm_eps)
    q, k, v = (_split(_linear(y, weights, f"self_attn.{name}_proj"), shape.head_dim)
               for name in "qkv")
    if shape.of.head_norms:
        q, k = (rms_norm(part, weights[f"self_attn.{name}_norm.weight"], shape.rms_norm_eps)
                for name, part in (("q", q), ("k", k)))
    q, k = _rotate(q, positions), _rotate(k, positions)
    heads = F.scaled_dot_product_attention(
        q, k, v, attn_mask=positions.seen, is_causal=positions.seen is None, enable_gqa=True,
        scale=shape.attention_multiplier)
    return heads.transpose(1, 2).flatten(2)


def project_out(heads: Tensor, weights: Weights, shape: Shape) -> Tensor:
    """Return what attention adds to the hidden states: o_proj, `(b, t, n * d)` to `(b, t, h)`."""
    return added(put_out(heads, weights, OUT), weights, shape, OUT)


def ffn_channels(x: Tensor, weights: Weights, shape: Shape) -> Tensor:
    """Return the activations of the FFN's channels, before down_proj: `(b, t, intermediate_size)`.

    SwiGLU or GEGLU (arXiv:2002.05202, eq. 6 and 5).
    """
    y = rms_norm(x, weights[f"{shape.of.ffn_norm}.weight"], shape.rms_norm_eps)
    gates = _linear(y, weights, "mlp.gate_proj")
    gates = F.silu(gates) if shape.of.activation == "silu" else F.gelu(gates, approximate="tanh")
    return gates * _linear(y, weights, "mlp.up_proj")


def project_down(channels: Tensor, weights: Weights, shape: Shape) -> Tensor:
    """Return what the FFN adds: down_proj, `(b, t, intermediate_size)` to `(b, t, h)`."""
    return added(put_out(channels, weights, DOWN), weights, shape, DOWN)


def put_out(inputs: Tensor, weights: Weights, projection: str) -> Tensor:
    """Return what o_proj or down_proj itself puts out."""
    return _linear(inputs, weights, projection)


def added(put: Tensor, weights: Weights, shape: Shape, projection: str) -> Tensor:
    """Return what is added to the hidden states of what o_proj or down_proj puts out."""
    if shape.of.norms_after:
        put = rms_norm(put, weights[_NORM_AFTER[projection]], shape.rms_norm_eps)
    return put if shape.residual_multiplier == 1 else put * shape.residual_multiplier


class Output(NamedTuple):
    """What a model's layers make of text, and what makes logits of that.

    Attributes:
        states: Hidden states after the last layer, `(b, t, hidden_size)`.
        head: The model's own.
    """

    states: Tensor
    head: Head

    def logits(self, i: int | slice) -> Tensor:
        """Return what sequences predict of all tokens but the first, `(..., t - 1, vocab_size)`."""
        return self.head.logits(self.states[i, :-1])


def output_of(
    checkpoint: Checkpoint, layers: Layers, tokens: Tensor, dtype: torch.dtype = torch.float32
) -> Output:
    """Run some layers on text, with the checkpoint's embedding and head where none are among them.

    Args:
        checkpoint: Gives the shape that layers share, whatever their widths.
        layers: Those that are run, as `surgery` and `compress` yield them; consumed once.
        tokens: Token ids, `(b, t)`.
        dtype: Of the products in a layer.
    """
    shape, where = checkpoint.shape, compute_device()
    positions = positions_of(shape, tokens.shape[1], where)
    x, head = embed(checkpoint, tokens).to(where), None
    for place, stored in layers:
        in_layer = place not in {BEFORE, shape.num_hidden_layers}
        weights = {name: weight.to(where) for name, weight in stored.items()}
        weights = (applied(weights, shape, dtype) if in_layer
                   else in_dtype(weights, torch.float32))
        if in_layer:
            x = run_layer(x, weights, shape, positions[place])
        elif place == BEFORE:
            x = weights[EMBEDDING][tokens] * shape.embedding_scale
        else:
            head = Head(weights[FINAL_NORM].float(), weights[PROJECTION], shape.rms_norm_eps,
                        shape.logits_scaling)
    return Output(x, head or output_head(checkpoint, where))


def losses(outputs: Sequence[Output], unpruned: Output, text: Sample) -> list[Loss]:
    """Return what several pruned models lose.

    Args:
        outputs: What each puts out.
        unpruned: What the unpruned model puts out.
        text: What they were given.
    """
    tokens = text.tokens.to(unpruned.states.device)
    found = tokens.new_zeros((len(outputs), 2, len(tokens)), dtype=torch.float64)
    some = max(_JUDGED_TOKENS // tokens.shape[1], 1)
    for first in range(0, len(tokens), some):  # the logits of all would be large
        part = slice(first, first + some)
        ids = tokens[part, 1:, None]
        reference = unpruned.logits(part).log_softmax(-1)
        p = reference.exp()
        certainty = torch.linalg.vecdot(p, reference)
        for totals, output in zip(found, outputs, strict=True):
            logits = output.logits(part)
            scale = logits.logsumexp(-1)  # log q is logits less this: one pass fewer
            # by rows: one float32 sum over all is off by a thousandth, 0.02 nats
            totals[0, part] = (scale - logits.gather(-1, ids)[..., 0]).double().mean(1)
            totals[1, part] = (certainty + scale - torch.linalg.vecdot(p, logits)).double().mean(1)
    windows = {kind: [i for i, of in enumerate(text.kinds) if of == kind] for kind in text.kinds}
    return [Loss(float(nats.mean()), max(float(divergence.mean()), 0.0),
                 worse_half({kind: float(divergence[mine].mean())
                             for kind, mine in windows.items()}, text.own))
            for nats, divergence in found]


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Multiply in the dtype of the weights; what comes in and what goes out have that of `x`."""
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def _split(x: Tensor, head_dim: int) -> Tensor:
    heads: Tensor = x.unflatten(-1, (-1, head_dim))
    return heads.transpose(1, 2)  # (b, n, t, d)


def _rotate(x: Tensor, positions: Positions) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * positions.cos + torch.cat((-right, left), dim=-1) * positions.sin
