"""The runtime's build flags and refusals; the build itself is tested on the ARM machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.device.probe import DeviceFacts, facts_of
from edgeprune.device.runtime import check_supported, cpu_flags, onnx_archive
from edgeprune.errors import DeviceError
from tests.device.test_probe import PI5, QEMU, X86


def _with(**changes: object) -> DeviceFacts:
    return DeviceFacts.model_validate({**facts_of(PI5).model_dump(), **changes})


def test_kernels_are_built_for_the_features_that_the_cpu_has() -> None:
    assert cpu_flags(facts_of(PI5)) == "generic+v8_2a+dotprod+fullfp16"
    assert cpu_flags(facts_of(QEMU)) == "generic+v8_2a+dotprod+fullfp16+i8mm"


def test_an_old_core_gets_the_baseline() -> None:
    assert cpu_flags(_with(cpu_features=("fp", "asimd", "crc32"))) == "generic"


@pytest.mark.parametrize(("facts", "named"), [
    (facts_of(X86), "x86_64"),
    (_with(architecture="armv7l"), "armv7l"),
    (_with(glibc=None), "musl"),
    (_with(glibc="2.24"), "2.24"),
])
def test_what_no_runtime_can_be_built_for_is_refused(facts: DeviceFacts, named: str) -> None:
    with pytest.raises(DeviceError, match=named):
        check_supported(facts)


def test_the_oldest_supported_glibc_is_accepted() -> None:
    check_supported(_with(glibc="2.28"))


def test_a_python_that_has_no_onnxruntime_is_refused_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    with pytest.raises(DeviceError, match=r"Python 3\.9 on aarch64.*take GGUF"):
        onnx_archive(_with(python="3.9.2"), lambda _: None)
    assert not list(tmp_path.glob("runtimes/*"))
