"""A GGUF file opened through llama.cpp on this machine: tokens and logits.

In: a GGUF path. Out: token ids, and logits as numpy arrays. Used where a number must come from the
artifact itself (perplexity, parity); speed is measured by the agent, on the target.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np
from jinja2 import TemplateError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from numpy.typing import NDArray

from edgeprune.data.kinds import Message
from edgeprune.errors import InputError

log = logging.getLogger(__name__)
_ERROR = 4  # ggml_log_level: NONE, DEBUG, INFO, WARN, ERROR, CONT


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _to_logging(level: int, text: bytes, _: Any) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if line:
        log.log(logging.WARNING if level == _ERROR else logging.DEBUG, "%s", line)


def quiet_llama_cpp() -> None:
    """Send llama.cpp's messages to this module's logger instead of stderr."""
    llama_cpp.llama_log_set(_to_logging, ctypes.c_void_p(0))


class GgufModel:
    """A loaded GGUF model; a context manager.

    Attributes:
        n_vocab: Vocabulary size.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        threads: int | None = None,
        vocab_only: bool = False,
        exact: bool = False,
    ) -> None:
        """Load `path`.

        Args:
            path: The GGUF file.
            n_ctx: Most tokens evaluated at once.
            threads: CPU threads; all by default.
            vocab_only: Load the tokenizer only.
            exact: Attend in F32 (llama.cpp keeps keys and values in F16), for comparisons.

        Raises:
            InputError: llama.cpp refuses the file.
        """
        quiet_llama_cpp()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self._context: Any = None
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise InputError(f"llama.cpp cannot load {path}",
                             remedy="run with --verbose to see its messages")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.n_ctx = n_ctx
        if not vocab_only:
            self._context = self._open_context(threads or os.cpu_count() or 1, exact)

    def _open_context(self, threads: int, exact: bool) -> Any:  # noqa: FBT001
        params = llama_cpp.llama_context_default_params()
        if exact:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_ctx = params.n_batch = params.n_ubatch = self.n_ctx
        params.n_threads = params.n_threads_batch = threads
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise InputError("llama.cpp cannot make a context", got=f"n_ctx={self.n_ctx}",
                             remedy="is there enough memory?")
        return context

    @property
    def begin(self) -> int | None:
        """The token that begins a text, else the one that ends it; None when there is neither."""
        tokens: tuple[int, int] = (llama_cpp.llama_vocab_bos(self._vocab),
                                   llama_cpp.llama_vocab_eos(self._vocab))
        return next((token for token in tokens if token >= 0), None)

    def is_end(self, token: int) -> bool:
        """Tell whether a reply ends with a token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def tokenize(
        self, text: str, *, add_special: bool = False, special: bool = False
    ) -> list[int]:
        """Return the token ids of `text`.

        Args:
            text: Any.
            add_special: Put the token before it that begins a text, where the model wants one.
            special: Names of special tokens in the text are such; else they are plain text.

        Raises:
            InputError: The model has no tokenizer.
        """
        if llama_cpp.llama_vocab_type(self._vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise InputError("the model has no tokenizer, which a text needs",
                             remedy="put tokenizer.json beside the weights and export it again")
        data = text.encode()
        buffer = (llama_cpp.llama_token * (len(data) + 2))()
        count = llama_cpp.llama_tokenize(
            self._vocab, data, len(data), buffer, len(buffer), add_special, special
        )
        if count < 0:
            raise InputError("the model's tokenizer cannot read the text", got=text[:40])
        return list(buffer[:count])

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; special ones have none."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        room = 16 * len(tokens) + 16
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_detokenize(
                self._vocab, ids, len(tokens), buffer, room, False, False)
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", "replace")
            room = -count  # what it would have taken

    def chat(self, talk: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation; after a user's message a reply comes.

        They are as the model's chat template has them; without a template, the messages' own. What
        a template has no place for, such as a system's message, is left out.
        """
        template = llama_cpp.llama_model_chat_template(self._model, None)
        if not template:
            return self.tokenize("\n\n".join(message.content for message in talk),
                                 add_special=True)
        return self.tokenize(self._templated(template.decode(), talk), special=True)

    def _templated(self, template: str, talk: Sequence[Message]) -> str:
        formatter = Jinja2ChatFormatter(
            template, self._name(llama_cpp.llama_vocab_eos(self._vocab)),
            self._name(llama_cpp.llama_vocab_bos(self._vocab)),
            add_generation_prompt=talk[-1].role == "user")
        try:
            return str(formatter(messages=[message._asdict() for message in talk]).prompt)
        except (ValueError, TemplateError) as error:
            told = [message for message in talk if message.role != "system"]
            if 0 < len(told) < len(talk):
                return self._templated(template, told)
            raise InputError(f"the model's chat template refuses a conversation ({error})",
                             got=talk[0].content[:40],
                             remedy="do its roles alternate, the user's first?") from error

    def _name(self, token: int) -> str:
        """Return the name of a special token; empty when there is none."""
        if token < 0:
            return ""
        name: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return name.decode()

    def logits(self, tokens: Sequence[int], *, past: int = 0) -> NDArray[np.float32]:
        """Return the logits after each token, `(n_tokens, n_vocab)`.

        Args:
            tokens: They come after `past` tokens of what was evaluated before.
            past: 0 begins with an empty context.

        Raises:
            InputError: More tokens than the context holds.
        """
        if not 0 < past + len(tokens) <= self.n_ctx or not tokens:
            raise InputError(f"logits need 1 to {self.n_ctx} tokens", got=past + len(tokens))
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_rm(memory, 0, past, -1)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, past + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if status := llama_cpp.llama_decode(self._context, batch):
                raise InputError("llama.cpp cannot evaluate the tokens", got=f"status {status}")
        finally:
            llama_cpp.llama_batch_free(batch)
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(len(tokens), self.n_vocab)).copy()

    def close(self) -> None:
        """Free the model; safe to call twice."""
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = None
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
