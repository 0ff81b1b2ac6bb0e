"""The ONNX graph of a Llama, without its weights.

In: a shape and a number format. Out: an `onnx.ModelProto` whose tensors lie in one file beside it,
each at a known place. With weights it is an artifact (`edgeprune.export.onnx`); with other contents
it is a synthetic model, which costs the same time and RAM.

The nodes are those of onnxruntime-genai's model builder for the CPU: rotary attention with a cache
that is written in place (`GroupQueryAttention`), q, k and v as one product, logits of the last
token only. Matrices are quantized in blocks of 32 weights of a row with one scale each
(`MatMulNBits`); the token embedding likewise (`GatherBlockQuantized`), and where it is tied it is
the output head's own bytes. In the dynamic format matrices have a scale for each row
(`DynamicQuantizeMatMul`).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from edgeprune.errors import EdgePruneError, InputError
from edgeprune.model.families import FAMILIES
from edgeprune.model.onnx_formats import (
    BITS,
    BLOCK,
    FLOAT,
    INT8_DYNAMIC,
    block_bytes,
    is_tied,
    padded,
    products,
)
from edgeprune.model.shape import Shape

if TYPE_CHECKING:
    import torch

DATA_FILE = "model.onnx.data"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.MatMul.weight"
ROTARY = ("cos_cache", "sin_cache")  # and what of a layer they are for: `_local`, `_global`
CONTRIB = "com.microsoft"
HEAD_GRAIN = 16  # of GroupQueryAttention with rotary embedding, on the CPU
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: activations are rounded to int8
_BYTES = {TensorProto.FLOAT: 4, TensorProto.UINT8: 1, TensorProto.INT8: 1}


def graph_of(shape: Shape, quant: str) -> onnx.ModelProto:
    """Return the graph of a Llama of this shape, its tensors laid out in `DATA_FILE`.

    Args:
        shape: The shape.
        quant: One of `edgeprune.model.onnx_formats.ONNX_FORMATS`.

    Raises:
        InputError: onnxruntime has no attention for heads of this size.
        EdgePruneError: The builder made something else than this model.
    """
    if shape.head_dim % HEAD_GRAIN:
        raise InputError(f"onnxruntime's attention takes a head_dim that is a multiple of "
                         f"{HEAD_GRAIN}", got=shape.head_dim, remedy="take --format gguf")
    model = _float_graph(shape)
    if quant != FLOAT:
        _quantize(model.graph, quant)
    _lay_out(model.graph, tied=is_tied(shape, quant))
    return model


def places(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Return where each tensor lies in the file beside the graph: its first byte, its bytes."""
    return {tensor.name: _place(tensor) for tensor in model.graph.initializer}


def data_bytes(model: onnx.ModelProto) -> int:
    """Return the size of the file beside the graph."""
    return max(first + size for first, size in places(model).values())


def _place(tensor: TensorProto) -> tuple[int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return int(entries["offset"]), int(entries["length"])


def _float_graph(shape: Shape) -> onnx.ModelProto:
    """Let the builder make the float32 graph of a model that has no weights."""
    import onnx_ir as ir  # noqa: PLC0415

    # rotary scaling is in the numbers of the caches, which are not the builder's
    plain = shape.replace(rope_scaling=None)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        builder = _builder(shape.family)(plain)
        builder.make_model("")
    graph = builder.model.graph
    for value in graph.initializers.values():
        value.const_value = ir.ExternalTensor(
            DATA_FILE, 0, 0, value.dtype, shape=value.shape, name=value.name)
    graph.sort()
    model: onnx.ModelProto = ir.to_proto(builder.model)
    del model.graph.value_info[:]  # half of the graph; the runtime infers it
    expected = len(products(shape)) * shape.num_hidden_layers + 1
    if (found := len(list(_products(model.graph)))) != expected:
        raise EdgePruneError("the ONNX graph is not that of this model",
                             got=f"{found} matrix products, not {expected}")
    return model


@cache
def _builder(family: str) -> Any:
    """Return the builder's class for a family, made to work without weights."""
    import onnx_ir as ir  # noqa: PLC0415
    from onnxruntime_genai.models import builders  # noqa: PLC0415

    from edgeprune.model.stock import stock_config, weightless_model  # noqa: PLC0415

    class Weightless(getattr(builders, FAMILIES[family].onnx)):  # type: ignore[misc]
        def __init__(self, shape: Shape) -> None:
            self.shape, self.config = shape, stock_config(shape)
            options = {"prune_lm_head": True, "shared_embeddings": False, "hf_token": "false",
                       "hf_remote": False}
            # a config of transformers 5 has it among others
            self.config.rope_local_base_freq = shape.rope_local_base_freq
            super().__init__(self.config, ir.DataType.FLOAT, ir.DataType.FLOAT, "cpu", "", options)
            if shape.of.scales_embedding:
                self.embed_attrs["scale"] = shape.embedding_scale  # the builder's is rounded
            if not shape.sliding_window:
                self.window_size = -1

        def make_attention(self, layer_id: int, *arguments: Any, **more: Any) -> None:
            # genai's own builder for SmolLM3 (0.13) rotates these layers, too, by other nodes
            before = {name: self.attention_attrs[name] for name in ("rope", "use_rope_in_attn")}
            if layer_id in self.shape.unrotated_layers:
                self.attention_attrs.update(dict.fromkeys(before, False))
            super().make_attention(layer_id, *arguments, **more)
            self.attention_attrs.update(before)

        def is_local(self, layer_id: int) -> bool:
            # the builder takes one period of layers, which cuts break
            return layer_id in self.shape.local_layers

        def load_weights(self, input_path: str) -> torch.nn.Module:  # noqa: ARG002
            return _with_biases(weightless_model(self.shape))

        def has_lm_head(self, module: torch.nn.Module) -> bool:
            # the builder takes any projection with as many rows as the vocabulary for it
            return module is self.weights.lm_head

    return Weightless


def _with_biases(model: torch.nn.Module) -> torch.nn.Module:
    """Give a model biases of ones: the builder leaves zeros out."""
    import torch  # noqa: PLC0415

    for module in model.modules():
        if isinstance(bias := getattr(module, "bias", None), torch.nn.Parameter):
            module.bias = torch.nn.Parameter(torch.ones_like(bias, device="cpu"))
    return model


def _products(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.node if node.op_type == "MatMul")


def _quantize(graph: onnx.GraphProto, quant: str) -> None:
    """Have each product, and the embedding, read quantized weights."""
    bits = BITS[quant]
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in _products(graph):
        weight, (k, n) = node.input[1], dims[node.input[1]]
        if quant == INT8_DYNAMIC:
            _replace(graph, weight, (k, n), (n,), TensorProto.INT8)
            node.CopyFrom(helper.make_node(
                "DynamicQuantizeMatMul", [node.input[0], packed(weight), scales(weight)],
                node.output, node.name, domain=CONTRIB))
            continue
        blocks = -(-k // BLOCK)
        _replace(graph, weight, (n, blocks, block_bytes(bits)), (n, blocks))
        node.CopyFrom(helper.make_node(
            "MatMulNBits", [node.input[0], packed(weight), scales(weight)], node.output,
            node.name, domain=CONTRIB, K=k, N=n, bits=bits, block_size=BLOCK,
            accuracy_level=INT8_ACTIVATIONS))
    vocabulary, width = dims[EMBEDDING]
    if width % BLOCK:
        return  # its rows are read by themselves, and must be whole blocks
    _replace(graph, EMBEDDING, (vocabulary, width * bits // 8), (vocabulary, width // BLOCK))
    gather = next(node for node in graph.node if node.input[:1] == [EMBEDDING])
    gather.CopyFrom(helper.make_node(
        "GatherBlockQuantized", [packed(EMBEDDING), gather.input[1], scales(EMBEDDING)],
        gather.output, gather.name, domain=CONTRIB, bits=bits, block_size=BLOCK, gather_axis=0,
        quantize_axis=1))


def packed(weight: str) -> str:
    """Return the name of a matrix's quantized weights."""
    return f"{weight}_quantized"


def scales(weight: str) -> str:
    """Return the name of the scales of a matrix's blocks."""
    return f"{weight}_scales"


def _replace(
    graph: onnx.GraphProto, weight: str, blocks: tuple[int, ...], scale: tuple[int, ...],
    weight_kind: int = TensorProto.UINT8,
) -> None:
    at = next(i for i, tensor in enumerate(graph.initializer) if tensor.name == weight)
    del graph.initializer[at]
    for name, kind, dims in ((packed(weight), weight_kind, blocks),
                             (scales(weight), TensorProto.FLOAT, scale)):
        graph.initializer.append(TensorProto(name=name, data_type=kind, dims=dims))


def _lay_out(graph: onnx.GraphProto, *, tied: bool) -> None:
    """Give each tensor its place in the file; a tied embedding's is that of the output head."""
    end, known = 0, dict[str, int]()
    for tensor in graph.initializer:
        size = _BYTES[tensor.data_type] * math.prod(tensor.dims)
        place = tensor.name.replace(EMBEDDING, HEAD) if tied else tensor.name
        if place not in known:
            known[place], end = end, end + padded(size)
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", DATA_FILE), ("offset", known[place]), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
