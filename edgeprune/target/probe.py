"""Probes: one command and one pure parser for each fact about a target.

In: a transport. Out: `DeviceFacts`. A probe that a machine cannot answer leaves its fact unknown;
only the architecture, the CPU count, the RAM and python are required.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from edgeprune.errors import DeviceError
from edgeprune.records import Record
from edgeprune.target.transport import Transport

_CACHES = "/sys/devices/system/cpu/cpu0/cache"
# Of the work directory, or of what there is of the way to it.
_PYTHON = """
import os, platform, shutil, sys, time
place = os.path.abspath(sys.argv[1])
while not os.path.isdir(place):
    place = os.path.dirname(place)
print(platform.python_version(), platform.libc_ver()[1] or "-", shutil.disk_usage(place).free,
      int(os.access(place, os.W_OK | os.X_OK)), time.time())
"""
_PLACE = re.compile(  # what that prints
    r"(?P<python>\d{1,3}\.\d{1,3}\S*) (?P<glibc>-|\d{1,3}\.\d{1,3}\S*) (?P<free>\d{1,20}) "
    r"(?P<writable>[01]) (?P<clock>-?\d{1,15}(\.\d+)?(e[+-]\d\d)?)\s*", re.ASCII)
_EMULATION_FILES = ("/sys/firmware/devicetree/base/compatible", "/sys/class/dmi/id/sys_vendor")
_IMPLEMENTERS = {
    "0x00": "QEMU",
    "0x41": "Arm", "0x42": "Broadcom", "0x46": "Fujitsu", "0x48": "HiSilicon", "0x4e": "NVIDIA",
    "0x50": "APM", "0x51": "Qualcomm", "0x61": "Apple", "0xc0": "Ampere",
}
_PARTS = {
    ("0x00", "0x051"): "virtual CPU 'max'",
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55", ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75", ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78", ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd46"): "Cortex-A510", ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd49"): "Neoverse-N2", ("0x41", "0xd4f"): "Neoverse-V2",
}


class DeviceFacts(Record):
    """What a machine is. Facts that a machine does not tell are None or empty."""

    architecture: str
    cpu_model: str
    cpu_features: tuple[str, ...]
    cpus: int
    ram_bytes: int
    caches: dict[str, str]
    kernel: str
    governor: str | None
    emulated: bool
    python: str
    glibc: str | None
    disk_free_bytes: int
    writable: bool = True
    available_bytes: int | None = None
    clock_ahead_s: float = 0.0

    def describe(self) -> str:
        """Return the machine in one line for people."""
        kind = " (emulated)" if self.emulated else ""
        return (
            f"{self.architecture}, {self.cpu_model}{kind}, {self.cpus} CPUs, "
            f"{self.ram_bytes / 2**30:.1f} GiB RAM, Linux {self.kernel}"
        )

    def identity(self) -> dict[str, Any]:
        """Return the facts that make measurements comparable: what changes by itself does not."""
        return self.model_dump(mode="json", exclude={
            "disk_free_bytes", "governor", "writable", "available_bytes", "clock_ahead_s"})


def probe(
    transport: Transport, *, python: str, work: str = ".", emulated: bool | None = None
) -> DeviceFacts:
    """Ask a target what it is.

    Args:
        transport: The way to the target.
        python: Its Python interpreter.
        work: The directory that will be written to, which need not be there.
        emulated: What the target file says; None lets the probe decide.

    Raises:
        DeviceError: Not Linux, or no python3.
    """
    commands: dict[str, tuple[str, ...]] = {
        "uname": ("uname", "-srm"),
        "cpuinfo": ("cat", "/proc/cpuinfo"),
        "meminfo": ("cat", "/proc/meminfo"),
        "cpus": ("nproc",),
        "caches": ("grep", "-rs", "", f"{_CACHES}/index0", f"{_CACHES}/index1",
                   f"{_CACHES}/index2", f"{_CACHES}/index3"),
        "governor": ("cat", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "board": ("cat", *_EMULATION_FILES),
        "python": (python, "-c", _PYTHON, work),
    }
    answers = {}
    for name, argv in commands.items():
        done = transport.run(argv)
        answers[name] = done.stdout if not done.status or name in {"board", "caches"} else ""
    if not answers["python"]:
        raise DeviceError(f"{python} does not run on the target",
                          remedy="install python3 (3.9 or later) there, or name it with 'python' "
                          "in the target file")
    return facts_of(answers, emulated=emulated, now=time.time())


def facts_of(
    answers: Mapping[str, str], *, emulated: bool | None = None, now: float = 0.0
) -> DeviceFacts:
    """Make facts of what the probes printed, at `now` by this machine's clock. Pure.

    Raises:
        DeviceError: The required facts cannot be read.
    """
    try:
        system, kernel, architecture = answers["uname"].split()
        if system != "Linux":
            raise DeviceError("only Linux targets are supported", got=system)
        memory, place = parse_meminfo(answers["meminfo"]), _PLACE.fullmatch(answers["python"])
        if place is None:
            raise DeviceError("python's answer cannot be read", got=answers["python"][:80])
        cpu = parse_cpuinfo(answers["cpuinfo"])
        is_emulated = _is_emulated(answers["board"], cpu["implementer"])
        return DeviceFacts(
            architecture=architecture,
            cpu_model=cpu["model"],
            cpu_features=tuple(sorted(cpu["features"].split())),
            cpus=int(answers["cpus"]),
            ram_bytes=memory["MemTotal"],
            caches=parse_caches(answers["caches"]),
            kernel=kernel,
            governor=answers["governor"].strip() or None,
            emulated=is_emulated if emulated is None else emulated,
            python=place["python"],
            glibc=None if place["glibc"] == "-" else place["glibc"],
            disk_free_bytes=int(place["free"]),
            writable=place["writable"] == "1",
            available_bytes=memory.get("MemAvailable"),
            clock_ahead_s=float(place["clock"]) - now,
        )
    except (ValueError, KeyError, ValidationError) as error:
        raise DeviceError(f"the target's answers cannot be read ({error})",
                          remedy="edgeprune needs Linux with /proc and coreutils") from error


def parse_cpuinfo(text: str) -> dict[str, str]:
    """Return `model`, `features` and `implementer` from /proc/cpuinfo of ARM or x86."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    implementer = fields.get("CPU implementer", "")
    part = fields.get("CPU part", "")
    named = _PARTS.get((implementer, part))
    arm = f"{_IMPLEMENTERS.get(implementer, implementer)} {named or f'part {part}'}"
    return {
        "model": fields.get("model name") or (arm if implementer else "unknown CPU"),
        "features": fields.get("Features") or fields.get("flags") or "",
        "implementer": implementer,
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the entries of /proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}


def parse_caches(text: str) -> dict[str, str]:
    """Return cache sizes such as `{"L1 Data": "32K"}` from `grep -r "" .../cache/index*`."""
    entries: dict[str, dict[str, str]] = {}
    for index, key, value in re.findall(r"(index\d)/(level|type|size):(.*)", text):
        entries.setdefault(index, {})[key] = value
    return {
        f"L{e['level']} {e['type']}": e["size"]
        for _, e in sorted(entries.items())
        if {"level", "type", "size"} <= e.keys()
    }


def _is_emulated(board: str, implementer: str) -> bool:
    """Tell qemu's software emulation from hardware (and from a virtual machine on ARM hardware).

    qemu's own CPU model `max` reports implementer 0x00, which no hardware does; x86 hosts that
    emulate a named ARM core cannot be told from KVM here, so the target file may say `emulated`.
    """
    in_qemu = "linux,dummy-virt" in board or "QEMU" in board
    return in_qemu and implementer in {"0x00", "0x0"}
