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
from typing import TYPE_CHECKING, Any

import gguf

from edgeprune.errors import MALFORMED, InputError, said
from edgeprune.model.config import refuse_pointer
from edgeprune.model.gguf import GgufModel
from edgeprune.model.metadata import read_metadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)
NAME = "tokenizer.gguf"
TOKENS, SCORES, TYPES = (
    f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
# llama.cpp's names of pre-tokenizers, one for each way to split text; the most usual ones first
BPE_PRE_TOKENIZERS = (
    "llama-bpe", "smollm", "gpt-2", "default", "tekken", "starcoder", "qwen2", "gpt-4o",
    "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon", "mpt", "refact", "command-r",
    "qwen35", "stablelm2", "olmo", "dbrx", "smaug-bpe", "poro-chat", "chatglm-bpe", "viking",
    "jais", "jais-2", "codeshell", "bloom", "gpt3-finnish", "exaone", "exaone-moe", "chameleon",
    "minerva-7b", "superbpe", "trillion", "granite-docling", "bailingmoe", "seed-coder", "hunyuan",
    "hunyuan-dense", "youtu", "grok-2", "afmoe", "minimax-m2", "solar-open",
)
MOST_TOKENS = 2**22  # vocabularies have some hundred thousand
TRAPS = (
    "Hello world, it's 3 o'clock; I'VE 12345 or 1,234.50 reasons - they'll  say\n\n\n  indented\t"
    "tabs\r\n Größe naïve 東京 привет 🚀🚀 a_b camelCase HTTPServer x=f(y)**2; // done...!!! ????\n"
    " trailing spaces   \n7 77 777 7777 77777 'd 'LL 're"
)


def tokenizer_of(
    directory: Path, destination: Path, vocab_size: int | None = None
) -> Path | None:
    """Return a `tokenizer.gguf` for a checkpoint, made at `destination` when it has none.

    Args:
        directory: The checkpoint directory.
        destination: Where a new file is written.
        vocab_size: Rows of the model's embedding; None does not look at it.

    Returns:
        The path, or None when the directory has no tokenizer at all.

    Raises:
        InputError: llama.cpp has no tokenizer that agrees with this one, or it has tokens that the
            embedding has no row for.
    """
    made = _found_or_made(directory, destination)
    if made is not None and vocab_size is not None and (count := token_count(made)) > vocab_size:
        raise InputError(
            f"the tokenizer of {directory} has more tokens than the model's vocab_size",
            got=f"{count} tokens, {vocab_size} rows in the embedding",
            remedy="take the tokenizer that came with these weights, or resize the embedding: "
            "model.resize_token_embeddings(len(tokenizer))")
    return made


def token_count(file: Path) -> int:
    """Return how many tokens the tokenizer of a GGUF file has; 0 when it has none.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        entry = read_metadata(file).get(TOKENS)
    except MALFORMED as error:
        raise InputError(f"{file} is not a readable GGUF file ({said(error)})",
                         remedy="put a whole one there, or none") from error
    return 0 if entry is None else len(entry.content)


def _found_or_made(directory: Path, destination: Path) -> Path | None:
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


def add_tokenizer(
    writer: gguf.GGUFWriter, source: Path | None, vocab_size: int | None = None
) -> None:
    """Add the tokenizer of the GGUF file `source` to `writer`.

    Args:
        writer: Of the new file.
        source: None adds "no vocabulary".
        vocab_size: Rows of the embedding: for those without a token there are unused ones, as
            llama.cpp's converter pads the list; None pads nothing.
    """
    if source is None:
        writer.add_tokenizer_model("none")
        return
    entries = read_metadata(source)
    count = len(entries[TOKENS].content) if TOKENS in entries else 0
    unused = range(count, vocab_size or count)
    padding = {TOKENS: [f"[PAD{i}]" for i in unused], SCORES: [-1000.0 for _ in unused],
               TYPES: [int(gguf.TokenType.UNUSED) for _ in unused]}
    for name, (kind, inner, content) in entries.items():
        if name.startswith("tokenizer."):
            padded = content if inner is None else content + padding.get(name, [])
            writer.add_key_value(name, padded, kind, sub_type=inner)


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
    """Find the tokenizer of llama.cpp that agrees with `tokenizer.json`.

    That file alone says how text is split. What stands beside it is read for special tokens and
    the chat template, in whatever way the generations of transformers write them.
    """
    tokenizer = _opened(directory)
    try:
        description = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        expected = tokenizer.encode(TRAPS, add_special_tokens=False).ids
        candidates = list(_candidates(directory, description, tokenizer))
        for name, fill in candidates:
            _write(destination, fill)
            if _split(destination, TRAPS) == expected:
                log.info("tokenizer of %s matches llama.cpp's %s", directory, name)
                return
    except MALFORMED as error:
        destination.unlink(missing_ok=True)
        raise _unreadable(directory, error) from error
    destination.unlink(missing_ok=True)
    raise InputError(
        f"llama.cpp has no tokenizer that splits text as {directory}/tokenizer.json does",
        got=f"{(description.get('model') or {}).get('type')} tokenizer",
        remedy=f"tried SentencePiece and {len(BPE_PRE_TOKENIZERS)} pre-tokenizers of llama.cpp; "
        f"put a {NAME} made from a known-good GGUF of this model into the directory",
    )


def _split(file: Path, text: str) -> list[int] | None:
    """Return the tokens of a text; None when llama.cpp refuses the tokenizer."""
    try:
        with GgufModel(file, vocab_only=True) as model:
            return model.tokenize(text)
    except InputError as error:
        log.debug("%s", error)
        return None


def _opened(directory: Path) -> Tokenizer:
    """Open a tokenizer.json.

    Raises:
        InputError: The library `tokenizers` cannot read it.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415 - heavy, only needed here

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        refuse_pointer(directory / name)
    try:
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # it raises no class of its own, but just that
        raise _unreadable(directory, error) from error


def _unreadable(directory: Path, error: Exception) -> InputError:
    return InputError(f"the tokenizer of {directory} cannot be read ({said(error)})",
                      remedy="copy or download tokenizer.json and what is beside it again")


class _Special(gguf.SpecialVocab):  # type: ignore[misc]
    """The special tokens that the files of a checkpoint name; a number below zero names none."""

    def _set_special_token(self, typ: str, tid: Any) -> None:
        if isinstance(tid, int) and tid >= 0:
            super()._set_special_token(typ, tid)


def _candidates(
    directory: Path, description: dict[str, Any], tokenizer: Tokenizer
) -> Iterator[tuple[str, Callable[[gguf.GGUFWriter], None]]]:
    model = description.get("model", {})
    if model.get("type") != "BPE":
        return
    tokens, types = _tokens(tokenizer)
    # llama.cpp's SentencePiece ends the process when it misses a byte's token
    sentencepiece = model.get("byte_fallback") and all(
        f"<0x{byte:02X}>" in tokens for byte in range(256))
    special = _Special(directory, load_merges=not sentencepiece, n_vocab=len(tokens))

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


def _tokens(tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """Return the tokens by id and their GGUF types."""
    by_id = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.get_added_tokens_decoder()
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
