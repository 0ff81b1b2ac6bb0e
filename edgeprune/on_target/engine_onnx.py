"""onnxruntime's engine: runs an ONNX model, and times it token by token.

In: a job's spec. Out: tokens and times. Runs on the target, beside `runner.py`; needs onnxruntime
and numpy on PYTHONPATH, Python 3.9 and later.

The KV cache is one buffer for each layer's keys and values, as long as the context, that is bound
as input and as output: attention writes a token's keys and values where they belong, and nothing is
copied. A graph whose cache grows instead (optimum's) has its outputs bound as the next inputs.
"""

from __future__ import annotations

import gzip
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

STEP = 256  # the context is whole steps of so many tokens, as llama.cpp's
PERIOD = 1_000_003  # prime, where places in a file are multiples of 64


class Engine:
    """A loaded model with a context for one request.

    Attributes:
        n_vocab: Vocabulary size.
        cache_bytes: What keys and values of the whole context take.
        depth: Tokens that were evaluated.
    """

    def __init__(self, spec: dict[str, Any], scratch: Path) -> None:
        """Load the model of `spec`; a synthetic one is laid out at `scratch`."""
        path = spec["path"] if "path" in spec else make_synthetic(spec, scratch)
        options = ort.SessionOptions()
        options.intra_op_num_threads = spec["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        n_ctx = max(spec.get("n_ctx") or 0, spec["n_prompt"] + spec["n_new"])
        self._room = -(-n_ctx // STEP) * STEP
        names = [value.name for value in self._session.get_inputs()]
        self._has_positions = "position_ids" in names
        self._past = [value for value in self._session.get_inputs()
                      if value.name.startswith("past_key_values.")]
        self.n_vocab = self._session.get_outputs()[0].shape[-1]
        self._is_shared = not self._has_positions  # attention that rotates also writes in place
        self._ones = np.ones((1, self._room), dtype=np.int64)
        self._token = np.zeros((1, 1), dtype=np.int64)
        self._token_value = _value(self._token)
        self._takes_token = False  # it is bound, and stays so from token to token
        self._masks: dict[int, Any] = {}
        self._binding = self._session.io_binding()
        self.cache_bytes = 0
        if self._is_shared:
            self._share_cache()
        self.clear()

    def _share_cache(self) -> None:
        self._cache = []
        for value in self._past:
            _, heads, _, width = value.shape
            zeros = np.empty((1, heads, self._room, width), dtype=np.float32)
            zeros.fill(0)  # takes the RAM that the whole context needs
            buffer = _value(zeros)
            self._cache.append((zeros, buffer))  # the binding holds only a pointer
            self._binding.bind_ortvalue_input(value.name, buffer)
            self._binding.bind_ortvalue_output(_present(value.name), buffer)
            self.cache_bytes += 4 * heads * self._room * width
        logits = np.empty((1, 1, self.n_vocab), dtype=np.float32)
        self._binding.bind_ortvalue_output("logits", _value(logits))
        self._logits: np.ndarray[Any, Any] = logits[0, 0]

    def clear(self) -> None:
        """Forget what was evaluated."""
        self.depth = 0
        if not self._is_shared:
            for value in self._past:
                _, heads, _, width = value.shape
                self._binding.bind_cpu_input(
                    value.name, np.zeros((1, heads, 0, width), dtype=np.float32))

    def go_back(self, n_tokens: int) -> None:
        """Forget what was evaluated after the first `n_tokens`; a cache that grows cannot."""
        if self._is_shared:
            self.depth = n_tokens
        elif n_tokens != self.depth:
            raise RuntimeError("a cache that grows cannot be cut: export the model again")

    def _begin(self, prompt: list[int], n_new: int) -> None:
        """Forget what was, and make each token's mask ahead, to be bound as it is.

        Weights have swept the CPU's caches of what Python last did, so that two numpy arrays made
        for a token cost 1 % of it.
        """
        self.clear()
        ends = range(len(prompt), len(prompt) + n_new)
        self._masks = {end: _value(self._ones[:, :end]) for end in ends}

    def evaluate(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Evaluate tokens after those before them; return the logits of the last, `(n_vocab,)`.

        They are overwritten by the next call.
        """
        binding, end = self._binding, self.depth + tokens.shape[1]
        if tokens is not self._token:
            binding.bind_cpu_input("input_ids", tokens)
        elif not self._takes_token:
            binding.bind_ortvalue_input("input_ids", self._token_value)
        self._takes_token = tokens is self._token
        mask = self._masks.get(end) or _value(self._ones[:, :end])
        binding.bind_ortvalue_input("attention_mask", mask)
        if not self._is_shared:
            return self._evaluate_growing(end)
        self._session.run_with_iobinding(binding)
        self.depth = end
        return self._logits

    def _evaluate_growing(self, end: int) -> np.ndarray[Any, Any]:
        binding = self._binding
        binding.bind_cpu_input("position_ids", np.arange(self.depth, end, dtype=np.int64)[None])
        binding.bind_output("logits")
        for value in self._past:
            binding.bind_output(_present(value.name))
        self._session.run_with_iobinding(binding)
        names = [value.name for value in self._session.get_outputs()]
        outputs = dict(zip(names, binding.get_outputs()))  # noqa: B905 - Python 3.9
        for value in self._past:
            binding.bind_ortvalue_input(value.name, outputs[_present(value.name)])
        self.depth = end
        logits: np.ndarray[Any, Any] = outputs["logits"].numpy()[0, -1]
        return logits

    def request(self, prompt: list[int], n_new: int) -> dict[str, list[int]]:
        """Do one request, greedily; return the nanoseconds from its start to each new token.

        The first new token comes from the prompt's evaluation; the end-of-text token is not heeded.
        """
        self._begin(prompt, n_new)
        tokens, times = np.array([prompt], dtype=np.int64), []
        begin = time.perf_counter_ns()
        for _ in range(n_new):
            logits = self.evaluate(tokens)
            self._token[0, 0] = logits.argmax()
            times.append(time.perf_counter_ns() - begin)
            tokens = self._token
        return {"token_ns": times}

    def generate(
        self, prompt: list[int], n_new: int, temperature: float = 0.0, top_p: float = 1.0,
        seed: int = 0,
    ) -> list[int]:
        """Return `n_new` tokens after a prompt: the likeliest or, with a temperature, drawn."""
        self._begin(prompt, n_new)
        source = np.random.default_rng(seed)
        tokens, found = np.array([prompt], dtype=np.int64), []
        for _ in range(n_new):
            found.append(choose(self.evaluate(tokens), temperature, top_p, source))
            self._token[0, 0] = found[-1]
            tokens = self._token
        return found

    def report(self) -> dict[str, Any]:
        """Return what the runtime says of itself and of its buffers."""
        return {"system_info": f"onnxruntime {ort.__version__}", "log": [],
                "kv_cache_bytes": self.cache_bytes}


def _value(array: np.ndarray[Any, Any]) -> ort.OrtValue:
    """Return an array as onnxruntime takes it; the memory is the array's, which must live on."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def _present(past: str) -> str:
    return past.replace("past_key_values", "present")


def choose(
    logits: np.ndarray[Any, Any], temperature: float, top_p: float, source: np.random.Generator
) -> int:
    """Return the likeliest token, or with a temperature one drawn from the likeliest `top_p`."""
    if temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)
    shares = np.exp((logits[order] - logits[order[0]]) / temperature)
    shares /= shares.sum()
    # the fewest of the likeliest that hold top_p together
    kept = min(len(shares), int(np.searchsorted(np.cumsum(shares), top_p)) + 1)
    return int(source.choice(order[:kept], p=shares[:kept] / math.fsum(shares[:kept])))


def make_synthetic(model: dict[str, Any], directory: Path) -> str:
    """Lay a model out in `directory`, its graph beside weights that mean nothing; return its path.

    All models of a job share one file of weights: only at loading are they read from it.
    """
    weights = directory.with_name("weights")
    fill(weights, model["size_bytes"])
    directory.mkdir()
    path = directory / "model.onnx"
    path.write_bytes(gzip.decompress(Path(model["graph"]).read_bytes()))
    os.link(weights, directory / "model.onnx.data")
    return str(path)


def fill(file: Path, size: int) -> None:
    """Make `file` at least `size` bytes long, with bytes of which any four are a float in (0, 1).

    They repeat after `PERIOD` bytes, at no two tensors alike: of equal tensors onnxruntime keeps
    one packed copy for all layers, which takes less RAM and half of the time.
    """
    have = file.stat().st_size if file.exists() else 0
    numbers = random.Random(PERIOD)  # noqa: S311 - nothing secret
    once = bytes(numbers.choices(range(0x30, 0x3F), k=PERIOD))
    with file.open("ab") as end:
        while have < size:
            have += end.write(once[have % PERIOD:])
