"""An ONNX artifact opened through onnxruntime on this machine: tokens and logits.

In: the directory of a model. Out: token ids, and logits as numpy arrays; as `edgeprune.model.gguf`
gives them for a GGUF file. The artifact computes the logits of a prompt's last token; to judge it,
the nodes that pick that token let all of them through, and nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as refused

from edgeprune.data.kinds import Message
from edgeprune.errors import InputError
from edgeprune.model.gguf import GgufModel
from edgeprune.model.onnx_formats import GRAPH
from edgeprune.model.tokenizer import NAME

# the builder's names for the nodes that pick it
LAST_TOKEN = ("/lm_head/prune/Gather", "/lm_head/prune/Unsqueeze")
# what onnx and onnxruntime raise over a file; the latter's errors have no class in common
_REFUSALS = (OSError, DecodeError, refused.Fail, refused.InvalidArgument, refused.InvalidGraph,
             refused.InvalidProtobuf, refused.NoSuchFile, refused.NotImplemented,
             refused.RuntimeException)
PAST, PRESENT = "past_key_values.", "present."
FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxModel:
    """A loaded ONNX model; a context manager.

    Attributes:
        n_vocab: Vocabulary size.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load the model in the directory `path`.

        Args:
            path: The directory of the graph, its weights and its tokenizer.
            threads: CPU threads; all by default.

        Raises:
            InputError: onnxruntime refuses the model.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        options.add_session_config_entry(FOLDER, str(path))
        try:
            graph = onnx.load(path / GRAPH, load_external_data=False)
            self._session = ort.InferenceSession(
                _of_all_tokens(graph).SerializeToString(), options,
                providers=["CPUExecutionProvider"])
        except _REFUSALS as error:
            raise InputError(f"onnxruntime cannot load {path}", got=str(error)[:200],
                             remedy="export it again") from error
        self._path = path
        self.n_vocab = int(self._session.get_outputs()[0].shape[-1])
        self._cache = {value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
                       for value in self._session.get_inputs() if value.name.startswith(PAST)}

    @cached_property
    def _tokenizer(self) -> GgufModel:
        file = self._path / NAME
        if not file.is_file():
            raise InputError(f"{self._path} has no tokenizer, which a text needs",
                             remedy="put tokenizer.json beside the weights and export it again")
        return GgufModel(file, vocab_only=True)

    @property
    def begin(self) -> int | None:
        """The token that begins a text, as `GgufModel.begin`."""
        return self._tokenizer.begin

    def is_end(self, token: int) -> bool:
        """Tell whether a reply ends with a token."""
        return self._tokenizer.is_end(token)

    def tokenize(
        self, text: str, *, add_special: bool = False, special: bool = False
    ) -> list[int]:
        """Return the tokens of a text, as `GgufModel.tokenize` does."""
        return self._tokenizer.tokenize(text, add_special=add_special, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; special ones have none."""
        return self._tokenizer.detokenize(tokens)

    def chat(self, talk: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, as `GgufModel.chat` does."""
        return self._tokenizer.chat(talk)

    def logits(self, tokens: Sequence[int], *, past: int = 0) -> NDArray[np.float32]:
        """Return the logits after each token, `(n_tokens, n_vocab)`.

        Args:
            tokens: They come after `past` tokens of what was evaluated before.
            past: 0 begins with an empty context.
        """
        whole = past + len(tokens)
        feed: dict[str, NDArray[np.generic]] = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, whole), dtype=np.int64),
            "position_ids": np.arange(past, whole, dtype=np.int64)[None],
            **{name: cache[:, :, :past] for name, cache in self._cache.items()}}
        wanted = {value.name for value in self._session.get_inputs()}
        found, *caches = self._session.run(
            ["logits", *(name.replace(PAST, PRESENT) for name in self._cache)],
            {name: array for name, array in feed.items() if name in wanted})
        self._cache = dict(zip(self._cache, caches, strict=True))
        logits: NDArray[np.float32] = found[0]
        return logits

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._session
        if "_tokenizer" in self.__dict__:
            self._tokenizer.close()


def _of_all_tokens(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the output head see all tokens, not the last one alone."""
    graph = model.graph
    picks = [node for node in graph.node if node.name in LAST_TOKEN]
    if picks:
        picks[-1].CopyFrom(onnx.helper.make_node(
            "Identity", picks[0].input[:1], picks[-1].output, picks[-1].name))
        for node in picks[:-1]:
            graph.node.remove(node)
        next(o for o in graph.output if o.name == "logits").type.tensor_type.shape.dim[
            1].dim_param = "sequence_length"
    return model
