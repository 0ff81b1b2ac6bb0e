"""The trial of an installed version, on its own socket: is it well, does it answer, fast enough?

In: the manifest's gate, a Unix socket. Out: figures, and what is wrong with them. Runs on the
target; standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.on_target.install.errors import RefusedError

REQUEST_S = 900.0
LEAST_TOKENS = 4  # of a reply that is timed


class Timing(NamedTuple):
    """One request: milliseconds to the first token and for each further one."""

    ttft_ms: float
    token_ms: float

    def latency_ms(self, n_new: int) -> float:
        """Milliseconds to the last of `n_new` tokens, however many came."""
        return self.ttft_ms + (n_new - 1) * self.token_ms


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, key: str) -> None:
        super().__init__("localhost", timeout=REQUEST_S)
        self._path, self._key = path, key

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        with contextlib.suppress(BrokenPipeError):  # who refuses need not have read all of it
            self.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self.getresponse()
        if answer.status != 200:
            text = answer.read(2000).decode("utf-8", "replace")
            raise RefusedError(f"{path} was answered with {answer.status}: {text[:300]}")
        return answer


def health(path: Path) -> dict[str, Any]:
    """Return what a server says of itself.

    Raises:
        OSError: Nobody listens there.
    """
    connection = _Connection(path, "")
    try:
        return dict(json.loads(connection.ask("GET", "/health").read()))
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def wait_until_well(path: Path, lives: Callable[[], bool], limit_s: float) -> None:
    """Wait until a server answers.

    Raises:
        RefusedError: It ended, or did not in time.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            health(path)
            return
        if not lives():
            raise RefusedError("the server ended while it started")
        time.sleep(0.5)
    raise RefusedError(f"the server did not answer within {limit_s:.0f} s")


def check_answer(path: Path, gate: Mapping[str, Any], key: str) -> str:
    """Return the reply to the question whose answer is known.

    Raises:
        RefusedError: It is another one.
    """
    told = gate["answer"].strip()
    connection = _Connection(path, key)
    try:
        answer = json.loads(connection.ask("POST", "/v1/completions", {
            "prompt": gate["question"], "max_tokens": 12, "temperature": 0}).read())
    finally:
        connection.close()
    text = str(answer["choices"][0]["text"])
    if not text.strip().startswith(told):
        raise RefusedError(f"the answer is not the known one: {text[:80]!r} instead of {told!r}")
    return text


def measure(path: Path, gate: Mapping[str, Any], key: str) -> list[Timing]:
    """Time a request for each prompt.

    Raises:
        RefusedError: No reply is long enough to be timed.
    """
    found = [timing for prompt in gate["prompts"]
             if (timing := _timed(path, prompt, gate["workload"]["n_new"], key)) is not None]
    if not found:
        raise RefusedError("no reply is long enough to be timed")
    return found


def _timed(path: Path, prompt: str, n_new: int, key: str) -> Timing | None:
    connection = _Connection(path, key)
    begin = time.monotonic()
    try:
        answer = connection.ask("POST", "/v1/completions", {
            "prompt": prompt, "max_tokens": max(n_new, LEAST_TOKENS), "temperature": 0,
            "stream": True})
        times = [1e3 * (time.monotonic() - begin) for line in answer
                 if line.startswith(b"data: {")]
    finally:
        connection.close()
    if len(times) < LEAST_TOKENS:
        return None  # the model had said all
    return Timing(times[0], 1e3 / max(health(path)["tokens_per_s"], 1e-9))


def figures(timings: list[Timing], gate: Mapping[str, Any], path: Path) -> dict[str, float]:
    """Return what was measured, by the names that limits have."""
    n_new = gate["workload"]["n_new"]
    return {"latency_ms": statistics.median(t.latency_ms(n_new) for t in timings),
            "ttft_ms": statistics.median(t.ttft_ms for t in timings),
            "token_ms": statistics.median(t.token_ms for t in timings),
            "ram_bytes": float(health(path)["peak_ram_bytes"])}


def faults(measured: Mapping[str, float], gate: Mapping[str, Any]) -> list[str]:
    """Say which limits do not hold. Pure.

    Times may exceed theirs by the gate's slack: they are of few requests, through the server.
    """
    found = []
    for limit in gate["limits"]:
        name, value = limit["metric"], measured.get(limit["metric"])
        if value is None:
            continue
        most = limit["limit"] * (1 + gate["slack"] if name.endswith("_ms") else 1)
        if value > most:
            promised = _shown(name, limit["limit"])
            found.append(f"{_shown(name, value)}, where {promised} was promised")
    return found


def _shown(name: str, value: float) -> str:
    if name == "token_ms":
        return f"{1e3 / value:.4g} tokens/s"
    if name == "ram_bytes":
        return f"{value / 2**20:.0f} MiB of RAM"
    return f"{name[:-3]} {value:.4g} ms"
