"""The metadata of GGUF files: as gguf's own reader finds it, and nothing of what is cut off."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.model.metadata import read_metadata

_INTEGERS = {GGUFValueType.UINT8: (0, 2**8), GGUFValueType.INT8: (-2**7, 2**7),
             GGUFValueType.UINT16: (0, 2**16), GGUFValueType.INT16: (-2**15, 2**15),
             GGUFValueType.UINT32: (0, 2**32), GGUFValueType.INT32: (-2**31, 2**31),
             GGUFValueType.UINT64: (0, 2**64), GGUFValueType.INT64: (-2**63, 2**63)}
_VALUES: dict[GGUFValueType, st.SearchStrategy[Any]] = {
    **{kind: st.integers(low, end - 1) for kind, (low, end) in _INTEGERS.items()},
    GGUFValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    GGUFValueType.FLOAT64: st.floats(allow_nan=False),
    GGUFValueType.BOOL: st.booleans(),
    GGUFValueType.STRING: st.text(st.characters(exclude_categories=["Cs"])),
}
_ENTRIES = st.sampled_from(list(_VALUES)).flatmap(lambda kind: st.one_of(
    st.tuples(st.just(kind), st.none(), _VALUES[kind]),
    st.tuples(st.just(GGUFValueType.ARRAY), st.just(kind),
              st.lists(_VALUES[kind], min_size=1, max_size=5))))


def _write(path: Path, entries: list[tuple[Any, Any, Any]]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for i, (kind, inner, content) in enumerate(entries):
        writer.add_key_value(f"entry.{i}", content, kind, sub_type=inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@given(st.lists(_ENTRIES, max_size=6))
@settings(max_examples=50)
def test_it_is_as_ggufs_own_reader_finds_it(entries: list[tuple[Any, Any, Any]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.gguf"
        _write(path, entries)
        found = read_metadata(path)
        theirs = gguf.GGUFReader(path).fields
        assert {name: entry.content for name, entry in found.items()} == {
            name: field.contents() for name, field in theirs.items()
            if not name.startswith("GGUF.")}
        assert [tuple(found[f"entry.{i}"]) for i in range(len(entries))] == entries


def test_a_file_that_ends_within_its_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    _write(path, [(GGUFValueType.ARRAY, GGUFValueType.STRING, ["one", "two"]),
                  (GGUFValueType.ARRAY, GGUFValueType.FLOAT32, [1.0, 2.0])])
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"ends within|no GGUF|empty"):
            read_metadata(path)


@pytest.mark.parametrize("head", [b"GGUF\1\0\0\0", b"FUGG\3\0\0\0"])
def test_another_file_is_refused(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head + bytes(64))
    with pytest.raises(ValueError, match="no GGUF file of version 2 or 3"):
        read_metadata(tmp_path / "a")
