"""Print what a server does under load: 8 clients for a minute, here or on the emulated ARM machine.

    python benchmarks/load.py [--arm] [--clients 8] [--seconds 60] [--queue 4]

SmolLM2 (Q4_K_M) is served by `edgeprune.on_target.serve.server`, here, or with `--arm` packaged and
deployed to the emulated machine. Every client asks again as soon as it has its answer, or a second
after it was told that the queue is full; `--queue` is less than there are clients, so that it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.host import describe_machine
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.source import resolve_model
from edgeprune.target.target import load_target
from tests.arm import machine as arm
from tests.host import free_port
from tests.service import describe, tunnel

N_NEW = 16
ROOT = Path(__file__).parent.parent


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", action="store_true")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=4)
    asked = parser.parse_args()
    with TemporaryDirectory() as scratch:
        directory = resolve_model("smollm2")[1]
        model = Path(scratch) / "smollm2.gguf"
        export_gguf(Checkpoint(directory), directory / "tokenizer.gguf", model, quant="Q4_K_M",
                    name="smollm2")
        serve = deployed if asked.arm else served
        with serve(model, asked.queue) as url:
            httpx.post(f"{url}/v1/completions", json=_request("first"), timeout=300)
            before = _resident_bytes(url)
            statuses = _load(url, asked.clients, asked.seconds)
            after, health = _resident_bytes(url), httpx.get(f"{url}/health", timeout=60).json()
    where = "the emulated ARM machine on " if asked.arm else ""
    print(f"{datetime.now(UTC):%Y-%m-%d}; {where}{describe_machine()}; SmolLM2 Q4_K_M, "
          f"{asked.clients} clients for {asked.seconds:.0f} s, {N_NEW} new tokens each, "
          f"{asked.queue} may wait")
    print(f"answered {statuses.pop(200, 0)}, told that the queue is full {statuses.pop(503, 0)}, "
          f"anything else {dict(statuses)}; resident {before / 2**20:.0f} MiB before, "
          f"{after / 2**20:.0f} MiB after, peak {health['peak_ram_bytes'] / 2**20:.0f} MiB; "
          f"last reply {health['tokens_per_s']:.1f} tokens/s")
    return 0 if not statuses else 1


def _request(prompt: str) -> dict[str, object]:
    return {"prompt": f"{prompt}: once upon a time", "max_tokens": N_NEW, "temperature": 0}


def _load(url: str, clients: int, seconds: float) -> Counter[int | str]:
    deadline = time.monotonic() + seconds

    def client(number: int) -> Counter[int | str]:
        found = Counter[int | str]()
        while time.monotonic() < deadline:
            try:
                status = httpx.post(f"{url}/v1/completions", timeout=600, json=_request(
                    f"{number}, {time.monotonic()}")).status_code
            except httpx.HTTPError as error:
                found[repr(error)] += 1
                continue
            found[status] += 1
            if status == 503:
                time.sleep(1)
        return found

    with ThreadPoolExecutor(clients) as together:
        return sum(together.map(client, range(clients)), Counter[int | str]())


def _resident_bytes(url: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return next(sample.value for family in text_string_to_metric_families(text)
                for sample in family.samples if sample.name == "process_resident_memory_bytes")


@contextmanager
def served(model: Path, queue: int) -> Iterator[str]:
    """Serve a model on this machine."""
    port = free_port()
    config = model.with_suffix(".json")
    config.write_text(json.dumps({"model": model.name, "name": "smollm2", "version": "1",
                                  "n_ctx": 512, "threads": 2, "queue": queue, "port": port}))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprune.on_target.serve.server", str(config)])
    try:
        for _ in range(600):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def deployed(model: Path, queue: int) -> Iterator[str]:
    """Serve a model on the emulated ARM machine."""
    def edgeprune(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "edgeprune.cli", *arguments, "--target", "root",
                        "--targets", str(model.parent)], check=True, stdout=sys.stderr)

    with arm.boot(arm.build()) as machine, tunnel(machine) as url:
        describe(load_target("qemu-arm64", ROOT / "targets"), model.parent)
        bundle = model.parent / "bundle"
        edgeprune("package", str(model), "--budget", "16 tokens after 8 < 10 min, ram < 600 MB",
                  "--queue", str(queue), "--context", "512", "--out", str(bundle))
        edgeprune("deploy", str(bundle))
        try:
            yield url
        finally:
            edgeprune("undeploy")


if __name__ == "__main__":
    sys.exit(main())
