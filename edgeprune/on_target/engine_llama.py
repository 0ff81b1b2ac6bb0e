"""llama.cpp's engine: runs a GGUF file, and times it token by token.

In: a job's spec. Out: tokens and times. Runs on the target, beside `runner.py`. Standard library
only, Python 3.9 and later. llama-cpp-python is found on PYTHONPATH; only its ctypes layer is
loaded: the high-level package would bring numpy and 30 MB into the process that is measured.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import time
import types
from pathlib import Path
from typing import Any


class Engine:
    """A loaded model with a context for one request.

    Attributes:
        n_vocab: Vocabulary size.
    """

    def __init__(self, spec: dict[str, Any], scratch: Path) -> None:
        """Load the model of `spec`; a synthetic one is laid out at `scratch`."""
        self._llama = load_llama_cpp()
        self._messages: list[str] = []
        self._callback = keep_log(self._llama, self._messages)
        path = spec["path"] if "path" in spec else make_synthetic(spec, scratch)
        self._context, self._sampler, self.n_vocab = open_model(self._llama, path, spec)

    def request(self, prompt: list[int], n_new: int) -> dict[str, list[int]]:
        """Do one request; return the nanoseconds from its start to each new token."""
        return request(self._llama, self._context, self._sampler, prompt, n_new)

    def report(self) -> dict[str, Any]:
        """Return what llama.cpp said of itself and of its buffers."""
        return {
            "system_info": self._llama.llama_print_system_info().decode(),
            "log": [m for m in self._messages if "buffer size" in m or "KV" in m or "kv" in m],
        }


def system_info() -> str:
    """Return the kernels that llama.cpp was built with and uses."""
    found: str = load_llama_cpp().llama_print_system_info().decode()
    return found


def load_llama_cpp() -> Any:
    """Import llama-cpp-python's ctypes layer without the package around it."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        raise RuntimeError("llama_cpp is not on PYTHONPATH: run `edgeprune target setup`")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["llama_cpp"] = package
    import llama_cpp.llama_cpp as llama

    llama.llama_backend_init()
    return llama


def keep_log(llama: Any, messages: list[str]) -> Any:
    """Collect llama.cpp's messages in `messages`; errors also go to the log.

    Returns the callback, which must live as long as llama.cpp: it holds only a pointer.
    """

    def receive(level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        messages.append(line)
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            print(line, file=sys.stderr)

    callback = llama.llama_log_callback(receive)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def make_synthetic(model: dict[str, Any], path: Path) -> str:
    """Lay a quantized model's data out at `path`, as a hole behind its real header."""
    path.write_bytes(Path(model["header"]).read_bytes())
    os.truncate(path, model["size_bytes"])
    return str(path)


def open_model(llama: Any, path: str, spec: dict[str, Any]) -> tuple[Any, Any, int]:
    """Load a model and make a context for one request; return (context, sampler, n_vocab)."""
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path}; see log.txt")
    context_params = llama.llama_context_default_params()
    n_ctx = max(spec.get("n_ctx") or 0, spec["n_prompt"] + spec["n_new"])
    context_params.n_ctx = context_params.n_batch = -(-n_ctx // 256) * 256
    context_params.n_ubatch = spec.get("n_ubatch", 512)
    context_params.n_threads = context_params.n_threads_batch = spec["threads"]
    context = llama.llama_init_from_model(model, context_params)
    if not context:
        raise RuntimeError("llama.cpp cannot make a context (out of memory?); see log.txt")
    sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_greedy())
    vocab = llama.llama_model_get_vocab(model)
    return context, sampler, llama.llama_vocab_n_tokens(vocab)


def request(
    llama: Any, context: Any, sampler: Any, prompt: list[int], n_new: int
) -> dict[str, list[int]]:
    """Do one request; return the nanoseconds from its start to each new token.

    The first new token comes from the prompt's evaluation; the end-of-text token is not heeded, so
    that every request makes `n_new` tokens.
    """
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    tokens = (llama.llama_token * len(prompt))(*prompt)
    one = (llama.llama_token * 1)()
    times = []
    begin = time.perf_counter_ns()
    batch = llama.llama_batch_get_one(tokens, len(prompt))
    for _ in range(n_new):
        status = llama.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        one[0] = llama.llama_sampler_sample(sampler, context, -1)
        times.append(time.perf_counter_ns() - begin)
        batch = llama.llama_batch_get_one(one, 1)
    return {"token_ns": times}
