"""What is shared by every record that edgeprune writes to disk: base class, hashing, verdicts.

Records are frozen, refuse unknown keys, and read and write themselves as JSON.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeprune.errors import InputError

__version__ = "0.1.0"


class Record(BaseModel):
    """A frozen, strictly keyed record that round-trips through a JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, path: Path) -> None:
        """Write the record as JSON to `path`, whole or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record from `path`.

        Raises:
            InputError: The file is missing, is not JSON, or does not fit the record.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            first = str(error).splitlines()[0]
            raise InputError(
                f"{cls.__name__} file {path} cannot be read ({first})",
                remedy="delete it and run again: it will be made anew",
            ) from error


class Verdict(StrEnum):
    """What a measurement says about a budget."""

    MET = "met"
    MISSED = "missed"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """Exit status of a command that ends with this verdict."""
        return {Verdict.MET: 0, Verdict.INCONCLUSIVE: 4, Verdict.MISSED: 7}[self]


class Known:
    """Values by key, kept in a file of JSON lines that grows.

    Half a line, which a killed process was writing, is none.
    """

    def __init__(self, path: Path) -> None:
        """Read what `path` holds, if it is there."""
        self._path, self._values = path, dict[str, Any]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                key, value = json.loads(line)
                self._values[str(key)] = value
            except (ValueError, TypeError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, key: str, value: Any) -> None:
        """Keep a JSON-like value, in memory and on disk."""
        self._values[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            # a line break first: the file may end in half a line
            file.write(("\n" if file.tell() else "") + json.dumps([key, value]))


def write_text(path: Path, text: str) -> None:
    """Write `text` to a temporary name beside `path`, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def digest(*values: Any) -> str:
    """Return 16 hex digits that identify JSON-like values or records."""
    plain = [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
