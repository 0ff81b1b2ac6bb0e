"""The families of models that edgeprune knows, by their name in `config.json`.

To add one: a module here, its line in this table, and its row in `tests/model/test_families.py`.
"""

from __future__ import annotations

from edgeprune.model.families.family import Family
from edgeprune.model.families.gemma3 import GEMMA3
from edgeprune.model.families.granite import GRANITE
from edgeprune.model.families.llama import LLAMA
from edgeprune.model.families.mistral import MISTRAL
from edgeprune.model.families.qwen2 import QWEN2
from edgeprune.model.families.qwen3 import QWEN3
from edgeprune.model.families.smollm3 import SMOLLM3

__all__ = ["BY_GGUF", "FAMILIES", "Family"]

FAMILIES = {family.model_type: family for family in (
    LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, GEMMA3, SMOLLM3)}
# of several with one name in GGUF files, the first
BY_GGUF = {family.gguf: family for family in reversed(FAMILIES.values())}
