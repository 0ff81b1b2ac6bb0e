"""What the tests of the server share: a real server process, and artifacts for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeprune.export.artifact import export
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.tokenizer import tokenizer_of
from tests.host import free_port


@pytest.fixture(scope="session")
def gguf_and_onnx(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give `small` as a GGUF file and as an ONNX model, both in float32."""
    directory = tmp_path_factory.mktemp("served")
    tokenizer = tokenizer_of(small, directory / "tokenizer.gguf")
    made = {"gguf": directory / "small.gguf", "onnx": directory / "small-onnx"}
    for kind, quant in (("gguf", "F32"), ("onnx", "onnx:fp32")):
        export(Checkpoint(small), tokenizer, made[kind], quant=quant, name="small")
    return made


class Running:
    """A server that runs: where it is, and its process."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        """Know where it is."""
        self.url = f"http://127.0.0.1:{port}"
        self.process = process

    def health(self) -> dict[str, Any]:
        """Return what it says of itself."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=10).json()
        return answer

    def ask(self, prompt: str, n_new: int, **more: Any) -> httpx.Response:
        """Ask for a greedy completion."""
        return httpx.post(f"{self.url}/v1/completions", timeout=60, json={
            "prompt": prompt, "max_tokens": n_new, "temperature": 0, **more})

    def terminate(self) -> int:
        """End it politely; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(
    model: Path, scratch: Path, key: str | None = None, **changes: Any
) -> Iterator[Running]:
    """Run a server of a model on a free port."""
    port = free_port()
    config = scratch / f"{port}.json"
    config.write_text(json.dumps({"model": str(model), "name": "small", "version": "1.0",
                                  "n_ctx": 512, "threads": 1, "port": port, **changes}))
    environment = {**os.environ, **({"EDGEPRUNE_API_KEY": key} if key else {})}
    with (scratch / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeprune.on_target.serve.server", str(config)],
            stdout=log, stderr=log, env=environment)
    running = Running(port, process)
    try:
        for _ in range(600):
            assert process.poll() is None, (scratch / f"{port}.log").read_text()
            try:
                running.health()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield running
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(
    gguf_and_onnx: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Serve the GGUF file with room for two to wait."""
    with serving(gguf_and_onnx["gguf"], tmp_path_factory.mktemp("server"), queue=2) as running:
        yield running
