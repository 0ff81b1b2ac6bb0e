"""Records round-trip, refuse unknown keys, and broken files are told with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.model.cuts import Cuts
from edgeprune.records import Verdict, digest


@given(layers=st.lists(st.integers(0, 99)), groups=st.integers(0, 9))
def test_a_record_survives_json(layers: list[int], groups: int) -> None:
    cuts = Cuts(layers=tuple(layers), kv_groups=groups)
    assert Cuts.model_validate_json(cuts.model_dump_json()) == cuts


@pytest.mark.parametrize("text", ["", "{", "[]", '{"layers": [1], "more": 2}', '{"layers": "x"}'])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cuts.json").write_text(text)
    with pytest.raises(InputError, match=r"cuts\.json.*delete it"):
        Cuts.read(tmp_path / "cuts.json")


def test_a_digest_depends_on_every_value() -> None:
    assert digest(1, Cuts()) == digest(1, Cuts())
    assert len({digest(1, 2), digest(2, 1), digest(12), digest([1, 2]), digest(1, Cuts())}) == 5


def test_exit_codes_of_verdicts() -> None:
    assert {v: v.exit_code for v in Verdict} == {
        Verdict.MET: 0, Verdict.INCONCLUSIVE: 4, Verdict.MISSED: 7}
