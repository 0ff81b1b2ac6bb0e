"""The runtime's build flags and refusals; the build itself is tested on the ARM machine."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from edgeprune.cache import locked
from edgeprune.errors import DeviceError
from edgeprune.target.probe import DeviceFacts, facts_of, probe
from edgeprune.target.runtime import check_supported, cpu_flags, onnx_archive, runtime_archive
from edgeprune.target.transport import LocalTransport
from tests.target.test_probe import PI5, QEMU, X86


def _with(**changes: object) -> DeviceFacts:
    return DeviceFacts.model_validate({**facts_of(PI5).model_dump(), **changes})


def test_kernels_are_built_for_the_features_that_the_cpu_has() -> None:
    assert cpu_flags(facts_of(PI5)) == "generic+v8_2a+dotprod+fullfp16"
    assert cpu_flags(facts_of(QEMU)) == "generic+v8_2a+dotprod+fullfp16+i8mm"


def test_an_old_core_gets_the_baseline() -> None:
    assert cpu_flags(_with(cpu_features=("fp", "asimd", "crc32"))) == "generic"


@pytest.mark.parametrize(("facts", "named"), [
    (facts_of(X86).model_copy(update={"cpu_features": ()}), "x86_64"),
    (_with(architecture="riscv64"), "riscv64"),
    (_with(architecture="armv7l"), "armv7l"),
    (_with(glibc=None), "musl"),
    (_with(glibc="2.24"), "2.24"),
])
def test_what_no_runtime_can_be_built_for_is_refused(facts: DeviceFacts, named: str) -> None:
    with pytest.raises(DeviceError, match=named):
        check_supported(facts)


@pytest.fixture
def here() -> DeviceFacts:
    """Give the facts of this machine, which a target with another ARM CPU cannot be like."""
    facts = probe(LocalTransport(), python=sys.executable)
    if facts.architecture == "aarch64":
        pytest.skip("an ARM target gets a runtime that is built for it")
    return facts


def test_a_target_like_this_machine_gets_what_is_installed_here(
    here: DeviceFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    assert cpu_flags(here) == "native"
    archive = runtime_archive(here, lambda _: None)
    assert runtime_archive(here, lambda _: None) == archive
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "site")
        names = packed.namelist()
    assert any(name.startswith("llama_cpp/lib/libllama") for name in names)
    assert not [name for name in names if "server" in name or "__pycache__" in name]
    run = subprocess.run(
        [sys.executable, "-c", "import llama_cpp; print(llama_cpp.__file__)"], check=True,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert run.stdout.startswith(str(tmp_path))


def test_one_process_makes_a_runtime_and_the_others_wait(
    here: DeviceFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    archive = runtime_archive(here, lambda _: None)
    archive.unlink()
    said = SimpleQueue[str]()
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "locks" / archive.parent.name, lambda: None):
            found = pool.submit(runtime_archive, here, said.put)
            assert "waiting for another edgeprune" in said.get(timeout=60)
            archive.write_bytes(b"made by the other one")
        assert found.result() == archive
    assert archive.read_bytes() == b"made by the other one"


@pytest.mark.parametrize(("changes", "named"), [
    ({"architecture": "riscv64"}, "riscv64, here is"),
    ({"cpu_features": ()}, "without"),
    ({"glibc": "2.17"}, "with glibc 2.17, here is"),
    ({"glibc": None}, "no glibc"),
])
def test_a_target_that_is_less_than_this_machine_is_refused(
    here: DeviceFacts, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(DeviceError, match=named):
        cpu_flags(here.model_copy(update=changes))


def test_one_feature_less_is_too_few_and_more_are_as_good(here: DeviceFacts) -> None:
    first, *others = here.cpu_features
    assert cpu_flags(here.model_copy(update={"cpu_features": (first, *others, "more")})) == "native"
    with pytest.raises(DeviceError, match=f"without {first}'"):
        cpu_flags(here.model_copy(update={"cpu_features": tuple(others)}))


def test_the_oldest_supported_glibc_is_accepted() -> None:
    check_supported(_with(glibc="2.28"))


def test_a_python_that_has_no_onnxruntime_is_refused_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    with pytest.raises(DeviceError, match=r"Python 3\.9 on aarch64.*take GGUF"):
        onnx_archive(_with(python="3.9.2"), lambda _: None)
    assert not list(tmp_path.glob("runtimes/*"))
