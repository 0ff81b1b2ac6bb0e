"""On how many threads an artifact is judged here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgeprune.quality.windows import SMALL_BYTES, threads_for


def test_threads_are_left_to_what_keeps_the_cpus_busy(tmp_path: Path) -> None:
    small, large = tmp_path / "small.gguf", tmp_path / "large.gguf"
    small.write_bytes(b"GGUF")
    with large.open("wb") as file:
        file.truncate(SMALL_BYTES)
    cpus = os.cpu_count() or 1
    assert 1 <= threads_for(large) <= cpus
    load = [subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"],
                             stdout=subprocess.PIPE) for _ in range(cpus)]
    try:
        for process in load:
            assert process.stdout is not None
            process.stdout.readline()  # it runs
        assert threads_for(large) == threads_for(small) == 1
    finally:
        for process in load:
            process.kill()
            process.communicate()
