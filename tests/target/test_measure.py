"""Measurements: what is derived from samples, and what makes a machine unfit to measure on."""

from __future__ import annotations

from typing import Any

import pytest

from edgeprune.target.measurement import (
    Comparison,
    Measurement,
    Memory,
    Workload,
    disturbances,
    memory_of,
)

QUIET: dict[str, Any] = {
    "monotonic_s": 100.0, "cpu_busy_ticks": 1000, "own_ticks": 500, "ticks_per_s": 100, "cpus": 2,
    "swapped_pages": 7, "major_faults": 3, "throttled": None,
}


def measurement(token_ms: list[list[float]], **changes: Any) -> Measurement:
    """Return a measurement with the given times of new tokens, request by request."""
    entries: dict[str, Any] = {
        "target": "board", "emulated": False, "threads": 4, "file_bytes": 100, "before": QUIET,
        "after": QUIET, "system_info": "NEON = 1",
        "workload": Workload(n_prompt=10, n_new=len(token_ms[0]), requests=len(token_ms)),
        "token_ns": [[round(ms * 1e6) for ms in request] for request in token_ms],
        "memory": Memory(peak_bytes=1000, anonymous_bytes=600, file_bytes=400, python_bytes=50),
    }
    return Measurement(**{**entries, **changes})


def after(**changes: Any) -> dict[str, Any]:
    """Return the state ten seconds later, with only our own work done."""
    own = {"monotonic_s": 110.0, "cpu_busy_ticks": 3000, "own_ticks": 2500}
    return {**QUIET, **own, **changes}


def test_percentiles_and_rates() -> None:
    found = measurement([[10, 20, 30], [20, 30, 40], [30, 60, 90]])
    assert found.latency_ms(50) == 40
    assert found.latency_ms(90) == pytest.approx(80)
    assert found.ttft_ms == 20
    assert found.token_ms == 10
    assert found.prefill_tokens_per_s == 500
    assert found.decode_tokens_per_s == 100


def test_a_quiet_machine_has_no_disturbance() -> None:
    assert disturbances(QUIET, after()) == []


@pytest.mark.parametrize(("change", "named"), [
    ({"cpu_busy_ticks": 3250}, "other processes"),  # 250 of 2000 ticks are not ours
    ({"swapped_pages": 8}, "swapped"),
    ({"major_faults": 30}, "too little RAM"),
    ({"throttled": "0x50005"}, "throttling"),
])
def test_each_disturbance_is_named(change: dict[str, Any], named: str) -> None:
    found = disturbances(QUIET, after(**change))
    assert len(found) == 1
    assert named in found[0]


def test_a_board_that_reports_no_throttling_is_fine() -> None:
    assert disturbances(QUIET, after(throttled="0x0")) == []


def test_buffers_are_read_from_the_runtimes_log() -> None:
    log = ["CPU_Mapped model buffer size =    96.00 MiB", "CPU_REPACK model buffer size = 7.50 MiB",
           "llama_kv_cache:        CPU KV buffer size =     5.62 MiB",
           "CPU compute buffer size =   49.00 MiB", "CPU  output buffer size =     0.19 MiB"]
    memory = memory_of({"peak_bytes": 9, "anonymous_bytes": None, "file_bytes": None,
                        "python_bytes": 1}, log)
    assert memory.repacked_bytes == round(7.5 * 2**20)
    assert memory.kv_cache_bytes == round(5.62 * 2**20)
    assert memory.compute_bytes == 49 * 2**20
    assert memory.anonymous_bytes is None


def test_only_a_paired_baseline_casts_doubt_on_a_comparison() -> None:
    noisy = measurement([[1, 2]], disturbances=("noise",))
    quiet = measurement([[1, 2]])
    assert Comparison(baseline=noisy, pruned=quiet, paired=True).disturbances == ("noise",)
    assert Comparison(baseline=noisy, pruned=quiet, paired=False).disturbances == ()
    assert Comparison(baseline=quiet, pruned=noisy, paired=False).disturbances == ("noise",)


def test_a_measurement_survives_its_file(tmp_path: Any) -> None:
    found = measurement([[10, 20, 30]])
    found.write(tmp_path / "bench.json")
    assert Measurement.read(tmp_path / "bench.json") == found
