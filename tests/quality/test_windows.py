"""On how many threads an artifact is judged here, and on which texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.data.kinds import shipped_kinds
from edgeprune.errors import InputError
from edgeprune.pruning.calibration import calibration_corpus
from edgeprune.quality.windows import SMALL_BYTES, evaluation_kinds, threads_for


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


def test_the_users_text_is_judged_on_beside_the_shipped_kinds(tmp_path: Path) -> None:
    mine = tmp_path / "code"  # as a shipped kind is called
    mine.write_text("some text of mine")
    found = evaluation_kinds(mine)
    assert [text.name for text in found] == ["your code", *shipped_kinds("evaluation")]
    assert found[0].passages == ("some text of mine",)
    with pytest.raises(InputError, match=r"calibrated on, too.*hold some"):
        evaluation_kinds(tmp_path, calibration_corpus(mine).own_passages)
