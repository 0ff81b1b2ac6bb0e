"""What other programs rely on changes only where that is meant."""

from __future__ import annotations

from tests.cli.public import HELP, SCHEMAS, help_of_every_command, schemas


def test_help_says_what_it_did() -> None:
    assert help_of_every_command() == HELP.read_text(encoding="utf-8")


def test_json_has_the_form_that_it_had() -> None:
    assert schemas() == SCHEMAS.read_text(encoding="utf-8")
