"""What the server counts: requests, tokens, their rate, its own memory.

In: events. Out: `/health` as a dictionary, `/metrics` in Prometheus' form. Runs on the target;
needs prometheus_client, Python 3.9 and later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Meter:
    """Counts what one server does.

    Attributes:
        in_hand: Requests that are being answered, or wait for it.
    """

    def __init__(self, model: str, version: str) -> None:
        """Count from now."""
        self._told = {"model": model, "version": version}
        self._since = time.monotonic()
        self._tokens_per_s = 0.0
        self.in_hand = 0
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("edgeprune_model", "What is served.", tuple(self._told), registry=registry).labels(
            **self._told).set(1)
        self._requests = Counter("edgeprune_requests", "Requests that were answered.",
                                 ("path", "status"), registry=registry)
        self._tokens = Counter("edgeprune_tokens", "Tokens of prompts, and new ones.", ("kind",),
                               registry=registry)
        self._seconds = Histogram("edgeprune_request_seconds", "Of requests for a reply, from "
                                  "arrival to end, the wait in the queue included.",
                                  buckets=SECONDS, registry=registry)
        Gauge("edgeprune_requests_in_hand", "Being answered, or waiting for it.",
              registry=registry).set_function(lambda: self.in_hand)
        Gauge("edgeprune_tokens_per_second", "New tokens after the first, of the last reply.",
              registry=registry).set_function(lambda: self._tokens_per_s)
        Gauge("edgeprune_peak_ram_bytes", "Most that was resident.",
              registry=registry).set_function(peak_ram_bytes)

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Count a request for a reply while it is in hand."""
        begin = time.monotonic()
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1
            self._seconds.observe(time.monotonic() - begin)

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(path=path, status=str(status)).inc()

    def replied(self, n_prompt: int, times: list[float]) -> None:
        """Count a reply: tokens of its prompt, and the seconds at which its tokens came."""
        self._tokens.labels(kind="prompt").inc(n_prompt)
        self._tokens.labels(kind="new").inc(len(times))
        if len(times) > 1 and times[-1] > times[0]:
            self._tokens_per_s = (len(times) - 1) / (times[-1] - times[0])

    def health(self) -> dict[str, Any]:
        """Return how the server is."""
        return {"status": "ok", **self._told, "uptime_s": round(time.monotonic() - self._since, 1),
                "in_hand": self.in_hand, "tokens_per_s": round(self._tokens_per_s, 3),
                "peak_ram_bytes": peak_ram_bytes()}

    def metrics(self) -> bytes:
        """Return all that was counted in Prometheus' text form."""
        return generate_latest(self._registry)


def peak_ram_bytes() -> int:
    """Return the most that this process had resident (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
