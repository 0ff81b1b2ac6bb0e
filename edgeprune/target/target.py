"""Target files: the machines that the user described, and the built-in `local`.

In: `targets/NAME.toml`. Out: a checked `Target`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from edgeprune.errors import UsageError, nearest
from edgeprune.records import Record

LOCAL = "local"
# Neither is read as an option by the programs that it is handed to.
_HOST, _USER = r"^[\w.:\[\]][\w.:\[\]%-]*$", r"^[^\s-]\S*$"


class Target(Record):
    """A machine, as the user described it.

    Paths may begin with `~`: `key`, `known_hosts` and `ssh_config` are on this machine,
    `work_directory` and `python` on the target. What of host, port, user and key is not told is as
    `~/.ssh/config` says (`edgeprune.target.route`).
    """

    name: str
    file: Path = Path("local.toml")
    host: str | None = Field(default=None, pattern=_HOST)
    port: int | None = Field(default=None, ge=1, le=65535)
    user: str | None = Field(default=None, pattern=_USER)
    key: Path | None = None
    known_hosts: Path | None = None
    ssh_config: Path | None = None
    work_directory: str = Field(default="~/.edgeprune", min_length=1)
    python: str = "python3"
    threads: int | None = Field(default=None, ge=1)
    emulated: bool | None = None
    connect_timeout_s: float = Field(default=15, gt=0)

    @property
    def is_local(self) -> bool:
        """True for the machine that edgeprune itself runs on."""
        return self.host is None


def load_target(name: str, directory: Path) -> Target:
    """Read the target `name`: `local`, a file in `directory`, or the path of a `.toml` file.

    Raises:
        UsageError: No such target, a file that is not TOML, an unknown or ill-typed key.
    """
    if name == LOCAL and not (directory / "local.toml").is_file():
        return Target(name=LOCAL, work_directory="~/.cache/edgeprune/local")
    path = Path(name) if name.endswith(".toml") else directory / f"{name}.toml"
    if not path.is_file():
        known = [LOCAL, *(file.stem for file in directory.glob("*.toml"))]
        raise UsageError(f"no target file {path}", remedy=nearest(name, known))
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is not a TOML file ({error})") from error
    return _checked(keys, path)


def list_targets(directory: Path) -> list[Target]:
    """Read every target: `local` first, then the files of `directory` by name."""
    names = sorted(file.stem for file in directory.glob("*.toml") if file.stem != LOCAL)
    return [load_target(name, directory) for name in (LOCAL, *names)]


def _checked(keys: dict[str, object], path: Path) -> Target:
    allowed = set(Target.model_fields) - {"name", "file"}
    for key in keys:
        if key not in allowed:
            raise UsageError(f"{path}: unknown key", got=key, remedy=nearest(key, allowed))
    if "host" not in keys and path.stem != LOCAL:
        raise UsageError(f"{path}: the key 'host' is missing", remedy='add host = "ADDRESS"')
    try:
        return Target.model_validate({"name": path.stem, "file": path, **keys})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {key}: {first['msg']}", got=first["input"]) from error
