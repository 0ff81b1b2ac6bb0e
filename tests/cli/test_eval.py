"""The commands `eval` and `judge` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_app import assert_one_line
from tests.conftest import Cli
from tests.tiny import make_tiny

pytestmark = pytest.mark.slow


def test_an_artifact_is_held_against_the_model_it_came_from(
    cli: Cli, small: Path, spoken_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("The game was released in Japan . " * 99, encoding="utf-8")
    (tmp_path / "words.jsonl").write_text('{"text": "in the end"}\n{"text": "of the year"}\n')
    arguments = ("eval", str(spoken_file), "--against", str(small), "--text", "text.txt",
                 "--context", "128", "--stride", "64", "--windows", "0", "--tasks", "words.jsonl")
    found = json.loads(cli(*arguments, "--json").stdout)
    assert found["reading"] == {"context": 128, "stride": 64, "windows": None,
                                "spread": False}
    assert found["quality"]["n_tokens"] == 64 * found["n_windows"]
    assert found["total"]["divergence"]["kl_mean"] > 0
    assert found["pruning"] is None
    assert {(score["task"], score["metric"]) for score in found["tasks"]} == {
        ("words", "acc"), ("words", "perplexity")}
    said = cli(*arguments)
    assert said.returncode == 0, said.stderr
    for text in ("a.gguf: perplexity", "text.txt", "windows of 128 tokens, stride 64",
                 "from the original", "KL mean", "words"):
        assert text in said.stdout


def test_a_checkpoint_is_judged_too(cli: Cli, small: Path) -> None:
    done = cli("eval", str(small), "--windows", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small-F16.gguf: perplexity")
    assert "2 windows of 512 tokens, 1022 tokens predicted" in done.stdout


def test_what_cannot_be_judged_exits_with_one_line(
    cli: Cli, spoken_file: Path, tmp_path: Path
) -> None:
    make_tiny(tmp_path / "tiny")
    assert_one_line(cli("eval", "nothing.gguf"), 6, "nothing.gguf")
    assert_one_line(cli("eval", "tiny"), 6, "no tokenizer")
    assert_one_line(cli("eval", "tiny", "--context", "64", "--stride", "65"), 2, "65", "at most 64")
    assert_one_line(cli("eval", str(spoken_file), "--text", "no.txt"), 6, "no.txt")
    # before the artifact is looked at
    assert_one_line(cli("eval", "no.gguf", "--tasks", "no.jsonl"), 6, "no.jsonl")
    (tmp_path / "mine.txt").write_text("some text")
    of_mine = ("eval", str(spoken_file), "--evaluate", "mine.txt")
    assert_one_line(cli(*of_mine), 2, "--evaluate", "--against")
    assert_one_line(cli(*of_mine, "--text", "mine.txt"), 2, "one of them")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/request.json").write_text("{}")
    assert_one_line(cli("eval", "unfinished"), 6, "not come to its end")


def test_a_judge_is_asked_and_its_nonsense_counted(
    cli: Cli, small: Path, spoken_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("One\nTwo\n", encoding="utf-8")
    asked = ("judge", str(spoken_file), "--against", str(small), "--prompts", "prompts.txt",
             "--new", "8", "--judge")
    done = cli(*asked, str(spoken_file))
    assert done.returncode == 0, done.stderr
    assert "2 answered with nonsense" in done.stdout  # it is a random model
    assert "-100.0% to 100.0%" in done.stdout
    assert_one_line(cli(*asked, "http://127.0.0.1:9/v1", "--judge-model", "m", "--retries", "0"),
                    9, "127.0.0.1:9", "run again")
    assert_one_line(cli(*asked[:-1]), 2, "there is no judge")
    alone = ("judge", str(spoken_file), "--prompts", "prompts.txt", "--judge", str(spoken_file))
    assert_one_line(cli(*alone), 2, "--against")
