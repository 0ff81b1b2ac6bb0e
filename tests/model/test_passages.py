"""Passages as tokens: running text, and conversations as the chat template has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from edgeprune.data.kinds import Message, shipped_kinds
from edgeprune.errors import InputError
from edgeprune.model.gguf import GgufModel
from edgeprune.model.passages import tokens_of
from edgeprune.model.tokenizer import tokenizer_of
from tests.tiny import make_tiny

STRICT = ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
          "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
          "{% if add_generation_prompt %}<assistant>{% endif %}")
ASKED, TOLD = Message("user", "Who are you?"), Message("assistant", "Nobody.")


@pytest.mark.smollm2
def test_conversations_are_as_transformers_has_them(smollm2: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(smollm2)
    talks = [talk for talk in shipped_kinds("evaluation")["dialogue"] if not isinstance(talk, str)]
    with GgufModel(smollm2 / "tokenizer.gguf", vocab_only=True) as model:
        for talk in [*talks[:10], (ASKED,)]:
            expected = theirs.apply_chat_template(
                [message._asdict() for message in talk], return_dict=False,
                add_generation_prompt=talk[-1].role == "user")
            assert tokens_of(model, [talk]) == expected
        assert tokens_of(model, ["One.", "Two.", talks[0], "Three."]) == [
            *model.tokenize("One.\n\nTwo."), *model.chat(talks[0]),
            *model.tokenize("\n\nThree.")]


def _with_template(directory: Path, template: str | None) -> Path:
    model = make_tiny(directory / "model", tokenizer=True)
    config = model / "tokenizer_config.json"
    found = json.loads(config.read_text())
    config.write_text(json.dumps({**found, **({"chat_template": template} if template else {})}))
    tokenizer = tokenizer_of(model, directory / "tokenizer.gguf")
    assert tokenizer is not None
    return tokenizer


def test_what_a_template_has_no_place_for_is_left_out(tmp_path: Path) -> None:
    with GgufModel(_with_template(tmp_path, STRICT), vocab_only=True) as model:
        talk = (Message("system", "Be brief."), ASKED, TOLD)
        assert model.detokenize(tokens_of(model, [talk])).strip() == (
            "<user>Who are you?<assistant>Nobody.")
        assert model.detokenize(tokens_of(model, [(ASKED,)])).strip() == (
            "<user>Who are you?<assistant>")


def test_a_template_that_refuses_is_told(tmp_path: Path) -> None:
    with (
        GgufModel(_with_template(tmp_path, "{{ raise_exception('never') }}"),
                  vocab_only=True) as model,
        pytest.raises(InputError, match=r"chat template refuses.*never"),
    ):
        tokens_of(model, [(ASKED, TOLD)])


def test_without_a_template_a_conversation_is_its_messages(tmp_path: Path) -> None:
    with GgufModel(_with_template(tmp_path, None), vocab_only=True) as model:
        found = model.detokenize(tokens_of(model, [(ASKED, TOLD)]))
        assert [line for line in found.strip().splitlines() if line] == [
            ASKED.content, TOLD.content]
