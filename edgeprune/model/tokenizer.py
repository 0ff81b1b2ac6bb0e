"""The tokenizer, as the GGUF metadata that llama.cpp reads on the device.

In: the tokenizer files of a Hugging Face directory, or a GGUF file. Out: `tokenizer.gguf`, a GGUF
file of metadata only, which export copies into artifacts and which tokenizes every text that
edgeprune reads: there is one tokenizer, the deployed one.

llama.cpp knows pre-tokenizers by name only, so a tokenizer.json is matched by trial: the candidate
that gives the same tokens as Hugging Face on a text full of traps is taken, and when none does the
model is refused rather than deployed with a tokenizer that splits differently.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf

from edgeprune.errors import MALFORMED, InputError
from edgeprune.model.gguf import GgufModel

log = logging.getLogger(__name__)
NAME = "tokenizer.gguf"
BPE_PRE_TOKENIZERS = ("llama-bpe", "smollm", "gpt-2", "default", "tekken", "starcoder", "qwen2")
MOST_TOKENS = 2**22  # vocabularies have some hundred thousand
TRAPS = (
    "Hello world, it's 3 o'clock; I'VE 12345 or 1,234.50 reasons - they'll  say\n\n\n  indented\t"
    "tabs\r\n Größe naïve 東京 привет 🚀🚀 a_b camelCase HTTPServer x=f(y)**2; // done...!!! ????\n"
    " trailing spaces   \n7 77 777 7777 77777 'd 'LL 're"
)


def tokenizer_of(directory: Path, destination: Path) -> Path | None:
    """Return a `tokenizer.gguf` for a checkpoint, made at `destination` when it has none.

    Args:
        directory: The checkpoint directory.
        destination: Where a new file is written.

    Returns:
        The path, or None when the directory has no tokenizer at all.

    Raises:
        InputError: llama.cpp has no tokenizer that agrees with this one.
    """
    if (directory / NAME).is_file():
        return directory / NAME
    if not (directory / "tokenizer.json").is_file():
        if (directory / "tokenizer.model").is_file():
            raise InputError(
                f"{directory} has a tokenizer.model but no tokenizer.json",
                remedy="load the tokenizer with transformers and save_pretrained it there",
            )
        return None
    _from_hugging_face(directory, destination)
    return destination


def copy_gguf_tokenizer(source: Path, destination: Path) -> None:
    """Write the tokenizer of the GGUF file `source` to `destination`, unchanged."""
    _write(destination, lambda writer: add_tokenizer(writer, source))


def add_tokenizer(writer: gguf.GGUFWriter, source: Path | None) -> None:
    """Add the tokenizer of the GGUF file `source` to `writer`; None adds "no vocabulary"."""
    if source is None:
        writer.add_tokenizer_model("none")
        return
    for field in gguf.GGUFReader(source).fields.values():
        if field.name.startswith("tokenizer."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)


def _write(path: Path, fill: Callable[[gguf.GGUFWriter], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(temporary, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    temporary.replace(path)


def _from_hugging_face(directory: Path, destination: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, only needed here

    _check_parses(directory)
    try:
        description = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        expected = tokenizer.encode(TRAPS, add_special_tokens=False)
        candidates = list(_candidates(directory, description, tokenizer))
    except MALFORMED as error:
        raise _unreadable(directory, error) from error
    for name, fill in candidates:
        _write(destination, fill)
        with GgufModel(destination, vocab_only=True) as model:
            if model.tokenize(TRAPS) == expected:
                log.info("tokenizer of %s matches llama.cpp's %s", directory, name)
                return
    destination.unlink(missing_ok=True)
    raise InputError(
        f"llama.cpp has no tokenizer that splits text as {directory}/tokenizer.json does",
        got=f"{description.get('model', {}).get('type')} tokenizer",
        remedy=f"tried {', '.join(BPE_PRE_TOKENIZERS)} and SentencePiece; "
        f"put a {NAME} made from a known-good GGUF of this model into the directory",
    )


def _check_parses(directory: Path) -> None:
    """Refuse a tokenizer.json that the library `tokenizers` cannot read."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - heavy, only needed here

    try:
        Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # it raises no class of its own, but just that
        raise _unreadable(directory, error) from error


def _unreadable(directory: Path, error: Exception) -> InputError:
    said = " ".join(str(error).split())[:200]
    return InputError(f"the tokenizer of {directory} cannot be read ({said})",
                      remedy="copy or download tokenizer.json and tokenizer_config.json again")


def _candidates(
    directory: Path, description: dict[str, Any], tokenizer: Any
) -> Iterator[tuple[str, Callable[[gguf.GGUFWriter], None]]]:
    model = description.get("model", {})
    if model.get("type") != "BPE":
        return
    tokens, types = _tokens(tokenizer)
    # llama.cpp's SentencePiece ends the process when it misses a byte's token
    sentencepiece = model.get("byte_fallback") and all(
        f"<0x{byte:02X}>" in tokens for byte in range(256))
    special = gguf.SpecialVocab(directory, load_merges=not sentencepiece)

    def fill(writer: gguf.GGUFWriter, kind: str, pre: str, extra: Iterable[float]) -> None:
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        if scores := list(extra):
            writer.add_token_scores(scores)
        writer.add_token_types(types)
        special.add_to_gguf(writer, quiet=True)

    if sentencepiece:
        scores = _merge_scores(model, tokens)
        for prefix in (True, False):
            def spm(writer: gguf.GGUFWriter, prefix: bool = prefix) -> None:  # noqa: FBT001
                fill(writer, "llama", "default", scores)
                writer.add_add_space_prefix(prefix)

            yield f"SentencePiece (add_space_prefix {prefix})", spm
        return
    for pre in BPE_PRE_TOKENIZERS:
        def bpe(writer: gguf.GGUFWriter, pre: str = pre) -> None:
            fill(writer, "gpt2", pre, ())

        yield pre, bpe


def _tokens(tokenizer: Any) -> tuple[list[str], list[int]]:
    """Return the tokens by id and their GGUF types."""
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    if max(by_id) >= MOST_TOKENS:
        raise ValueError(f"token {by_id[max(by_id)]!r} has the number {max(by_id)}")
    tokens, types = [], []
    for i in range(max(by_id) + 1):
        token = by_id.get(i)
        if token is None:
            kind, token = gguf.TokenType.UNUSED, f"[PAD{i}]"
        elif i in added:
            kind = gguf.TokenType.CONTROL if added[i].special else gguf.TokenType.USER_DEFINED
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _merge_scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """Return SentencePiece scores: a piece scores minus the rank of the merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges", [])):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(ranks))) for token in tokens]
