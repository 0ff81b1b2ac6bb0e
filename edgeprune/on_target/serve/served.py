"""The model that is served: llama-cpp-python's, whose replies end in time, and the same on ONNX.

In: what and how, from the configuration. Out: a `Llama`, which llama-cpp-python's server asks. Runs
on the target; needs llama-cpp-python and numpy (and onnxruntime), Python 3.9 and later.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from edgeprune.on_target.serve.meter import Meter


class Ticket:
    """A request's leave to be answered.

    Attributes:
        time_limit_s: For how long, from the evaluation of its prompt on.
        is_gone: Nobody listens any more.
        refusal: Why the model did not begin, when it did not: the server tells nobody in a stream.
        most_tokens: Of the reply; None where the client did not say.
    """

    def __init__(self, time_limit_s: float) -> None:
        """Let it take so long."""
        self.time_limit_s = time_limit_s
        self.is_gone = False
        self.refusal: str | None = None
        self.most_tokens: int | None = None


# set for a request by `edgeprune.on_target.serve.limits`; it goes with it into the server's threads
TICKET: ContextVar[Ticket] = ContextVar("TICKET")


class BoundedLlama(llama_cpp.Llama):  # type: ignore[misc]
    """A GGUF model whose replies end when their time is over or nobody listens any more."""

    n_tokens: int

    def __init__(self, path: Path, name: str, meter: Meter, **settings: Any) -> None:
        """Load a model; see `llama_cpp.Llama`."""
        super().__init__(str(path), verbose=False, **settings)
        self.model_path = name  # clients are told it
        self._meter = meter

    def create_completion(self, *prompt: Any, **how: Any) -> Any:
        """Reply as `llama_cpp.Llama.create_completion` does; a stream's refusal is kept."""
        TICKET.get().most_tokens = how.get("max_tokens")
        found = super().create_completion(*prompt, **how)
        return found if isinstance(found, dict) else self._begun(found)

    def _begun(self, chunks: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from chunks
        except ValueError as error:
            TICKET.get().refusal = str(error)
            raise

    def generate(self, tokens: Sequence[int], **how: Any) -> Iterator[int]:
        """Yield the tokens of a reply, as `llama_cpp.Llama.generate` does, until it must end.

        Who asks counts no tokens as long as the text ends within a character, so they are counted
        here: such a reply would go on until the context is full, and fail.
        """
        ticket, began, times = TICKET.get(), time.monotonic(), list[float]()
        room = self.n_ctx() - len(tokens)
        most = min(ticket.most_tokens or room, room)
        try:
            for token in super().generate(tokens, **how):
                times.append(time.monotonic())
                yield token
                if (len(times) >= most or ticket.is_gone
                        or time.monotonic() - began > ticket.time_limit_s):
                    return
        finally:
            self._meter.replied(len(tokens), times)


class OnnxLlama(BoundedLlama):
    """An ONNX model: tokens and samplers are llama.cpp's, logits onnxruntime's."""

    def __init__(
        self, directory: Path, name: str, meter: Meter, *, n_ctx: int, n_threads: int
    ) -> None:
        """Load the model in a directory; its tokenizer is a GGUF file without weights."""
        # onnxruntime is not for GGUF
        from edgeprune.on_target.engine_onnx import Engine  # noqa: PLC0415

        super().__init__(directory / "tokenizer.gguf", name, meter, vocab_only=True, n_ctx=n_ctx)
        self._engine = Engine({"path": str(directory / "model.onnx"), "threads": n_threads,
                               "n_ctx": n_ctx, "n_prompt": 1, "n_new": 1}, directory)
        self._known = list[int]()  # what the engine's cache holds

    def generate(self, tokens: Sequence[int], **how: Any) -> Iterator[int]:
        """Yield the tokens of a reply; what is known of the prompt, `eval` finds."""
        self.reset()
        return super().generate(tokens, **how)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after the `n_tokens` before them, and not what was the last time."""
        wanted = [*self.input_ids[: self.n_tokens].tolist(), *tokens]
        if self.n_tokens == 0:
            shared = self.longest_token_prefix(self._known, wanted)
            self._engine.go_back(min(shared, len(wanted) - 1))  # one is left, whose logits count
        self._row = self._engine.evaluate(np.array([wanted[self._engine.depth :]], dtype=np.int64))
        self.input_ids[self.n_tokens : len(wanted)] = tokens
        self.n_tokens, self._known = len(wanted), wanted
        self._requires_eval = False

    def sample(self, **_: Any) -> int:
        """Choose the next token by the sampler that `generate` has made."""
        found, chain = self._candidates, self._sampler.sampler
        found.copy_logits(self._row)
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(found.candidates))
        token = int(found.candidates.data[found.candidates.selected].id)
        llama_cpp.llama_sampler_accept(chain, token)
        return token
