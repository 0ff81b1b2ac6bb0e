"""Probes: parsers on recorded answers of machines."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import DeviceError
from edgeprune.target.probe import DeviceFacts, facts_of, parse_caches, parse_meminfo, probe
from edgeprune.target.transport import Completed, FakeTransport, LocalTransport

ARM_FEATURES = ("fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
                "lrcpc dcpop asimddp")
PI5 = {
    "uname": "Linux 6.6.31+rpt-rpi-2712 aarch64\n",
    "cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\n"
    f"Features\t: {ARM_FEATURES}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    "Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    "meminfo": "MemTotal:        8245760 kB\nMemFree:  7000000 kB\nMemAvailable: 7500000 kB\n",
    "cpus": "4\n",
    "caches": "/sys/devices/system/cpu/cpu0/cache/index0/level:1\n"
    "/sys/devices/system/cpu/cpu0/cache/index0/type:Data\n"
    "/sys/devices/system/cpu/cpu0/cache/index0/size:64K\n"
    "/sys/devices/system/cpu/cpu0/cache/index3/level:3\n"
    "/sys/devices/system/cpu/cpu0/cache/index3/type:Unified\n"
    "/sys/devices/system/cpu/cpu0/cache/index3/size:2048K\n",
    "governor": "ondemand\n",
    "board": "raspberrypi,5-model-b\0brcm,bcm2712\0",
    "python": "3.11.2 2.36 12345678 1 1000.5\n",
}
QEMU = {
    **PI5,
    "cpuinfo": f"processor\t: 0\nFeatures\t: {ARM_FEATURES} i8mm\n"
    "CPU implementer\t: 0x00\nCPU part\t: 0x051\n",
    "caches": "", "governor": "", "board": "linux,dummy-virt\0",
}
X86 = {
    **PI5, "uname": "Linux 6.1.0 x86_64\n", "board": "QEMU\n",
    "cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7763\n"
    "flags\t\t: fpu sse2 avx2\n",
}


def test_a_raspberry_pi_5_is_known() -> None:
    facts = facts_of(PI5)
    assert facts.cpu_model == "Arm Cortex-A76"
    assert {"asimddp", "asimdhp"} <= set(facts.cpu_features)
    assert (facts.cpus, facts.ram_bytes, facts.governor) == (4, 8245760 * 1024, "ondemand")
    assert facts.caches == {"L1 Data": "64K", "L3 Unified": "2048K"}
    assert (facts.python, facts.glibc, facts.disk_free_bytes) == ("3.11.2", "2.36", 12345678)
    assert not facts.emulated
    assert (facts.writable, facts.available_bytes) == (True, 7500000 * 1024)
    assert facts_of(PI5, now=1060.5).clock_ahead_s == -60


def test_the_emulated_machine_is_called_emulated() -> None:
    facts = facts_of(QEMU)
    assert facts.emulated
    assert "emulated" in facts.describe()
    assert (facts.caches, facts.governor) == ({}, None)


def test_a_virtual_machine_is_not_an_emulated_one() -> None:
    assert not facts_of(X86).emulated
    assert facts_of(X86).cpu_model == "AMD EPYC 7763"


def test_the_target_file_has_the_last_word_on_emulation() -> None:
    assert facts_of(PI5, emulated=True).emulated
    assert not facts_of(QEMU, emulated=False).emulated


def test_free_disk_does_not_make_another_machine() -> None:
    later = facts_of({**PI5, "python": "3.11.2 2.36 99 0 9.0\n"})
    assert later.identity() == facts_of(PI5).identity()
    assert facts_of(QEMU).identity() != facts_of(PI5).identity()


def test_musl_has_no_glibc() -> None:
    assert facts_of({**PI5, "python": "3.12.1 - 5 1 0\n"}).glibc is None


@pytest.mark.parametrize("change", [
    {"uname": "Darwin 23 arm64"}, {"uname": ""}, {"meminfo": ""}, {"cpus": "many"},
    {"python": "one two"}, {"python": "3.11.2 2.36 5 1 nan"}, {"python": "three 2.36 5 1 0"},
    {"python": "3.11.2 old 5 1 0"},
])
def test_answers_that_make_no_sense_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(DeviceError):
        facts_of({**PI5, **change})


@given(st.fixed_dictionaries({name: st.text(max_size=80) for name in PI5}))
def test_any_answers_are_read_or_refused(answers: dict[str, str]) -> None:
    try:
        facts_of(answers)
    except DeviceError:
        return


@given(st.text(max_size=200))
def test_parsers_take_any_text(text: str) -> None:
    assert isinstance(parse_caches(text), dict)
    assert isinstance(parse_meminfo(text), dict)


def _fake(**answers: Any) -> FakeTransport:
    cat = {("cat", "/proc/cpuinfo"): Completed(0, PI5["cpuinfo"]),
           ("cat", "/proc/meminfo"): Completed(0, PI5["meminfo"])}
    table: dict[Any, Completed] = {
        "uname": Completed(0, PI5["uname"]), "nproc": Completed(0, "4\n"),
        "python3": Completed(0, PI5["python"]), **cat, **answers}
    return FakeTransport(table)


def test_a_machine_that_tells_only_what_is_needed_is_probed() -> None:
    facts = probe(_fake(), python="python3")
    assert isinstance(facts, DeviceFacts)
    assert facts.governor is None


def test_a_machine_without_python_is_refused_with_the_remedy() -> None:
    with pytest.raises(DeviceError, match="install python3"):
        probe(_fake(python3=Completed(127, "", "not found")), python="python3")


def test_this_machine_can_be_probed() -> None:
    facts = probe(LocalTransport(), python="python3")
    assert facts.cpus >= 1
    assert facts.ram_bytes > 2**28
    assert not facts.emulated
    assert facts.writable
    assert abs(facts.clock_ahead_s) < 60
    assert facts.available_bytes is not None
    assert 0 < facts.available_bytes <= facts.ram_bytes


def test_the_disk_of_the_work_directory_is_the_one_that_counts() -> None:
    home, elsewhere = (probe(LocalTransport(), python="python3", work=work)
                       for work in (".", "/dev/shm/not/there/yet"))  # noqa: S108 - not written to
    assert home.disk_free_bytes != elsewhere.disk_free_bytes
