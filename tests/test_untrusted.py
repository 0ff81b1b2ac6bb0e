"""What comes from elsewhere is data: malformed, truncated or hostile, it is refused in one line."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.errors import EdgePruneError, InputError, UsageError
from edgeprune.model.config import read_config
from edgeprune.model.dequantize import MOST_ENTRIES, dequantize
from edgeprune.model.shape import Shape, shape_of_config
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.planning.cost import CostModel
from edgeprune.planning.greedy import Plan
from edgeprune.profiling.profile import Profile
from edgeprune.records import Record
from edgeprune.target.measure import _record
from edgeprune.target.measurement import Measurement
from edgeprune.target.probe import DeviceFacts
from edgeprune.target.target import Target, load_target
from tests.conftest import ROOT
from tests.tiny import make_tiny

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=4), max_leaves=12)
SHARED_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def _reads_or_refuses(read: Callable[[], object], error: type[EdgePruneError]) -> None:
    try:
        read()
    except error as refused:
        assert "\n" not in str(refused)  # noqa: PT017 - it may be read, too


@SHARED_FILE
@given(content=st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("kind", [Plan, Profile, CostModel, DeviceFacts])
def test_a_record_is_read_or_refused(kind: type[Record], content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="delete it and run again"):
        kind.read(tmp_path / "file")


@SHARED_FILE
@given(st.text(max_size=200) | st.dictionaries(
    st.sampled_from([*Target.model_fields]), st.text(max_size=12) | st.integers(),
    max_size=4).map(lambda keys: "\n".join(f"{k} = {json.dumps(v)}" for k, v in keys.items())))
def test_a_target_file_is_read_or_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "board.toml").write_text(content, encoding="utf-8", errors="surrogatepass")
    _reads_or_refuses(lambda: load_target("board", tmp_path), UsageError)


def test_a_target_file_may_nest_as_it_likes(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text("host = " + "[" * 10**5)
    with pytest.raises(UsageError, match="not a TOML file"):
        load_target("board", tmp_path)


@given(ANY_JSON.filter(lambda value: isinstance(value, dict)) | st.dictionaries(
    st.sampled_from([*Shape.model_fields, "rope_parameters", "quantization_config",
                     "architectures"]), ANY_JSON, max_size=6).map(
                         lambda entries: {"model_type": "llama", **entries}))
def test_a_config_is_read_or_refused(config: dict[str, Any]) -> None:
    _reads_or_refuses(lambda: shape_of_config(config), InputError)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 10**5, b"[]", b"", b'"text"'])
def test_a_config_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError):
        read_config(tmp_path)


@pytest.fixture(scope="module")
def header(gguf_file: Path) -> bytes:
    return gguf_file.read_bytes()[:20_000]


@SHARED_FILE
@given(end=st.integers(0, 20_000), changes=st.lists(
    st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=9)), max_size=6))
def test_a_gguf_header_is_read_or_refused(
    header: bytes, tmp_path: Path, end: int, changes: list[tuple[int, bytes]]
) -> None:
    content = bytearray(header)
    for start, replacement in changes:
        content[start : start + len(replacement)] = replacement
    (tmp_path / "model.gguf").write_bytes(content[:end])
    _reads_or_refuses(lambda: dequantize(tmp_path / "model.gguf", tmp_path / "out"), InputError)


@pytest.mark.parametrize("count", [8, 16])
def test_a_gguf_header_that_promises_too_much_is_refused_at_once(
    header: bytes, tmp_path: Path, count: int
) -> None:
    content = bytearray(header) + bytes(2**24)  # zeros are entries without a name, without end
    content[count : count + 8] = (MOST_ENTRIES + 1).to_bytes(8, "little")
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match="announces"):
        dequantize(tmp_path / "model.gguf", tmp_path / "out")


@pytest.mark.parametrize("change", [
    lambda _: b"[]", lambda _: b"{}", lambda _: b"\xff", lambda _: b"[" * 10**5,
    lambda text: text[: len(text) // 2], lambda text: text.replace(b'"BPE"', b"5"),
    lambda text: text.replace(b'"merges"', b'"others"'),
    lambda text: re.sub(rb'"vocab": *\{', b'"vocab": {"far": 4000000000,', text, count=1),
    lambda text: re.sub(rb'"vocab": *\{', b'"vocab": {"far": 40000000,', text, count=1),
])
def test_a_tokenizer_is_read_or_refused(
    change: Callable[[bytes], bytes], small: Path, tmp_path: Path
) -> None:
    whole = (small / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(change(whole))
    assert change(whole) != whole
    with pytest.raises(InputError, match="tokenizer") as refused:
        tokenizer_of(tmp_path, tmp_path / "made.gguf")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "made.gguf").exists()


@given(ANY_JSON)
def test_a_measurement_of_nonsense_is_none(value: Any) -> None:
    """`measure` says of these that the job's result cannot be read."""
    with pytest.raises((LookupError, TypeError, ValueError, AttributeError)):
        assert isinstance(_record(None, None, value, 0, None), Measurement)  # type: ignore[arg-type]


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    from edgeprune.model.checkpoint import Checkpoint

    directory = make_tiny(tmp_path / "tiny")
    for weights in directory.glob("*.safetensors"):
        weights.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch gone'\ntR.")
    with pytest.raises(InputError, match="safetensors"):
        Checkpoint(directory)


def test_nothing_that_runs_what_it_reads_is_in_the_code() -> None:
    """No pickle, no eval, no shell, and no host key that is taken unseen."""
    forbidden = {"pickle", "cPickle", "dill", "marshal", "shelve", "eval", "exec", "os.system",
                 "AutoAddPolicy", "WarningPolicy"}
    for file in (ROOT / "edgeprune").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            named = {alias.name for alias in node.names} if isinstance(
                node, (ast.Import, ast.ImportFrom)) else {
                node.id if isinstance(node, ast.Name) else
                node.attr if isinstance(node, ast.Attribute) else ""}
            if isinstance(node, ast.Attribute) and node.attr in {"eval", "exec"}:
                continue  # a model's eval()
            assert not named & forbidden, f"{file}: {named}"
            if isinstance(node, ast.keyword) and node.arg == "shell":
                raise AssertionError(f"{file} uses a shell")
