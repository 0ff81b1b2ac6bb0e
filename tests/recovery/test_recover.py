"""A pruned model is trained: in every way, killed and gone on with, in one process and in two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, LlamaForCausalLM

from edgeprune.data.kinds import shipped_kinds
from edgeprune.errors import InputError, UsageError
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.pruning.surgery import prune
from edgeprune.recovery.held_out import cross_entropy, n_predicted
from edgeprune.recovery.recipe import Pruned, Recovered, recipe_of
from edgeprune.recovery.recover import recover
from edgeprune.recovery.texts import read_examples
from edgeprune.recovery.trainer import Models, train
from tests.conftest import Cli, cli_argv
from tests.tiny import hf_logits, make_tiny

pytestmark = pytest.mark.slow
KEPT = [0, 1, 3, 5]
SHORT: dict[str, Any] = {"n_tokens": 32, "batch": 4, "micro_batch": 2, "learning_rate": 2e-3}
LINES = [f"{i} plus {i} is {2 * i}, and {i} times {i} is {i * i}." for i in range(200)]


@pytest.fixture(scope="module")
def pruned(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give `small` with four of its six layers, in half precision."""
    directory = tmp_path_factory.mktemp("pruned") / "pruned"
    prune(Checkpoint(small), Cuts(layers=(2, 4)), {}, directory)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float16)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a text that is easy to learn."""
    file = tmp_path_factory.mktemp("text") / "sums.txt"
    file.write_text("\n".join(LINES), encoding="utf-8")
    return file


def losses_of(found: Recovered, part: slice) -> float:
    """Return the mean loss of some steps."""
    return sum(found.losses[part]) / len(found.losses[part])


@pytest.mark.parametrize("way", ["distill", "distill-lora", "sft", "sft-lora"])
def test_the_loss_goes_down_and_a_stock_llama_comes_out(
    small: Path, pruned: Path, text: Path, tmp_path: Path, way: str
) -> None:
    said: list[str] = []
    found = recover(Pruned(pruned, small, KEPT), tmp_path / "out", recipe_of(way, **SHORT),
                    data=text, work=tmp_path / "work", notify=said.append)
    assert found is not None
    assert losses_of(found, slice(-10, None)) < 0.95 * losses_of(found, slice(10))
    if way.startswith("sft"):  # the unpruned model is random
        assert found.recovered < found.pruned
    before, after = Checkpoint(pruned), Checkpoint(tmp_path / "out")
    assert (after.shape, after.config, after.dtype) == (before.shape, before.config, torch.float16)
    assert (tmp_path / "out/tokenizer.json").is_file()
    LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "work").exists()
    assert any("training: step" in line for line in said)
    assert list(found.kinds) == list(shipped_kinds("evaluation"))
    if way == "distill":
        assert all(loss.original is not None for loss in found.kinds.values())
        assert found.share is not None
        assert found.original is not None


@pytest.mark.parametrize(("family", "entries"), [
    ("gemma3_text", {"sliding_window": 8, "query_pre_attn_scalar": 16}),
    ("smollm3", {"pad_token_id": None})])
def test_models_of_other_families_learn(
    family: str, entries: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    model = make_tiny(tmp_path / "m", family=family, tokenizer=True, **entries)
    found = recover(Pruned(model, model, KEPT), tmp_path / "out", recipe_of("sft", **SHORT),
                    data=text, work=tmp_path / "work", notify=lambda _: None)
    assert found is not None
    assert losses_of(found, slice(-10, None)) < 0.95 * losses_of(found, slice(10))
    assert Checkpoint(tmp_path / "out").shape == Checkpoint(model).shape


def test_merged_adapters_give_the_logits_of_the_adapters(
    pruned: Path, text: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pruned)
    recipe = recipe_of("sft-lora", **SHORT)
    trained = train(Models(pruned, None, tokenizer), read_examples(text, tokenizer, 32), recipe,
                    tmp_path / "work")
    model = LlamaForCausalLM.from_pretrained(pruned, dtype=torch.float32)
    tokens = list(range(5, 60))
    with torch.inference_mode():
        plain = model(torch.tensor([tokens])).logits[0]
        adapted = PeftModel.from_pretrained(model, str(trained.directory)).eval()(
            torch.tensor([tokens])).logits[0]
    assert (adapted - plain).abs().max() > 0.1
    recover(Pruned(pruned, None), tmp_path / "out", recipe, data=text, work=tmp_path / "again")
    merged = hf_logits(tmp_path / "out", tokens)  # stored in half precision
    assert (merged - adapted).abs().max() < 0.01 * adapted.abs().max()


def test_hidden_states_are_learnt_too(
    small: Path, pruned: Path, text: Path, tmp_path: Path
) -> None:
    recipe = recipe_of("distill", **{**SHORT, "learning_rate": 2e-4}, hidden_weight=1.0)
    found = recover(Pruned(pruned, small, KEPT), tmp_path / "out", recipe, data=text,
                    work=tmp_path / "work")
    assert found is not None
    assert losses_of(found, slice(-3, None)) < losses_of(found, slice(3))
    with pytest.raises(UsageError, match="hidden states cannot be compared"):
        recover(Pruned(pruned, small), tmp_path / "out", recipe, data=text, work=tmp_path / "work")


def test_a_model_has_nothing_to_learn_from_itself_but_the_text(
    small: Path, pruned: Path, text: Path, tmp_path: Path
) -> None:
    """All weight on the text is training on the text; none, and there is no loss."""
    same, short = Pruned(small, small, range(6)), {**SHORT, "epochs": 0.1}
    distill = recipe_of("distill", **short, text_weight=0.0)
    ways = {"nothing": (same, distill.model_copy(update={"hidden_weight": 1.0})),
            "text": (same, distill.model_copy(update={"text_weight": 1.0})),
            "sft": (same, recipe_of("sft", **short)),
            "layers": (Pruned(pruned, small, KEPT), distill)}
    first = {}
    for name, (model, recipe) in ways.items():
        found = recover(model, tmp_path / name, recipe, data=text, work=tmp_path / "work")
        assert found is not None
        first[name] = found.losses[0]
    assert first["text"] == pytest.approx(first["sft"], rel=1e-3)
    assert first["nothing"] < 0.01 * first["text"]
    assert first["nothing"] < 0.1 * first["layers"]


@pytest.mark.parametrize("example", [
    {"prompt": "{} plus {} is", "completion": " {}."}, {"text": "{} plus {} is {}."},
    {"messages": [{"role": "user", "content": "{} plus {}?"},
                  {"role": "assistant", "content": "It is {}."}]}])
def test_every_form_of_lines_is_trained_on(
    pruned: Path, tmp_path: Path, example: dict[str, Any]
) -> None:
    file, model = tmp_path / "a.jsonl", tmp_path / "model"
    template = json.dumps(example)
    file.write_text("\n".join(template.replace("{}", str(i)) for i in range(80)), encoding="utf-8")
    Checkpoint(pruned)
    subprocess.run(["cp", "-r", pruned, model], check=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = ("{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>"
                               "{% endfor %}")
    tokenizer.save_pretrained(model)
    found = recover(Pruned(model, None), tmp_path / "out", recipe_of("sft", **SHORT), data=file,
                    work=tmp_path / "work")
    assert found is not None
    assert found.n_examples == 76
    assert found.recovered < found.pruned


def test_the_cross_entropy_is_that_of_transformers(pruned: Path) -> None:
    examples = [([5, 6, 7, 8, 9], [-100, -100, 7, 8, 9]), ([9, 8, 7], [9, 8, 7])]
    model = LlamaForCausalLM.from_pretrained(pruned, dtype=torch.float32)
    total = 0.0
    with torch.inference_mode():
        for ids, labels in examples:
            loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss
            total += float(loss) * n_predicted([(ids, labels)])
    assert n_predicted(examples) == 5
    assert cross_entropy(Checkpoint(pruned), examples) == pytest.approx(total / 5, rel=1e-4)


def test_what_cannot_be_trained_is_refused(
    small: Path, pruned: Path, tiny: Path, tmp_path: Path
) -> None:
    recipe = recipe_of("distill", **SHORT)

    def tried(model: Pruned, **changes: Any) -> None:
        recover(model, tmp_path / "out", recipe.model_copy(update=changes), data=None,
                work=tmp_path / "work")

    with pytest.raises(UsageError, match=r"not known: got .*--original"):
        tried(Pruned(pruned, None))
    with pytest.raises(InputError, match="different vocabularies: got '1024 and 128 tokens'"):
        tried(Pruned(pruned, tiny))
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        tried(Pruned(tiny, tiny))
    with pytest.raises(UsageError, match="multiple of 1 x 3"):
        tried(Pruned(pruned, small), micro_batch=3)
    other = make_tiny(tmp_path / "other", tokenizer=True)
    with pytest.raises(UsageError, match="hidden states cannot be compared"):
        tried(Pruned(other, small), hidden_weight=1.0)
    assert not (tmp_path / "out").exists()


def recover_argv(pruned: Path, small: Path, text: Path, out: Path) -> list[str]:
    """Return a command line."""
    return ["recover", str(pruned), "--original", str(small), "--data", str(text), "--out",
            str(out), "--length", "32", "--micro-batch", "2", "--learning-rate", "5e-4",
            "--epochs", "1", "--text-weight", "0.5", "--json"]


@pytest.fixture(scope="module")
def uninterrupted(
    small: Path, pruned: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recovered, Path]:
    """Give what a training in one process came to, and where its model is."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    done = subprocess.run(cli_argv(*recover_argv(pruned, small, text, out)), capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Recovered.model_validate_json(done.stdout), out


def test_a_killed_training_goes_on_with_the_same_losses(
    small: Path, pruned: Path, text: Path, tmp_path: Path, uninterrupted: tuple[Recovered, Path],
    cli: Cli,
) -> None:
    argv = recover_argv(pruned, small, text, tmp_path / "out")
    process = subprocess.Popen(cli_argv(*argv), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / ".out.training/checkpoints"
    deadline = time.monotonic() + 200
    while not (whole := sorted(checkpoints.glob("checkpoint-*/trainer_state.json"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    (checkpoints / "checkpoint-9999").mkdir()  # torn: killed while it was written
    done = cli(*argv)
    assert done.returncode == 0, done.stderr
    found, expected = Recovered.model_validate_json(done.stdout), uninterrupted[0]
    assert whole
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert found.recovered == pytest.approx(expected.recovered, rel=1e-4)
    assert found.began_at > expected.began_at == 0
    assert not (tmp_path / ".out.training").exists()


def test_two_processes_come_to_the_same_as_one(
    small: Path, pruned: Path, text: Path, tmp_path: Path, uninterrupted: tuple[Recovered, Path]
) -> None:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            "-m", "edgeprune.cli", *recover_argv(pruned, small, text, tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found, (expected, out) = Recovered.model_validate_json(done.stdout), uninterrupted
    assert (found.processes, expected.processes) == (2, 1)
    assert found.losses == pytest.approx(expected.losses, rel=0.02)
    assert abs(found.recovered - expected.recovered) < 0.01 * (found.pruned - found.recovered)
    ours, theirs = Checkpoint(tmp_path / "out"), Checkpoint(out)
    for name in ("model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight"):
        moved = (theirs.tensor(name).float() - Checkpoint(pruned).tensor(name).float()).norm()
        apart = (ours.tensor(name).float() - theirs.tensor(name).float()).norm()
        assert apart < 0.1 * moved


def test_the_command_tells_what_came_back_and_overwrites_nothing(
    small: Path, pruned: Path, text: Path, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "out"
    argv = recover_argv(pruned, small, text, out)[:-3]
    done = cli(*argv, "--epochs", "0.1")
    assert done.returncode == 0, done.stderr
    assert "distill, all weights, 0.1 epochs" in done.stdout
    assert "not trained on" in done.stdout
    assert f"model: {out}" in done.stdout
    again = cli(*argv)
    assert again.returncode == 2
    assert "--force overwrites it" in again.stderr
    itself = cli(*recover_argv(pruned, small, text, pruned)[:-3], "--force")
    assert (itself.returncode, "the model itself" in itself.stderr) == (2, True)
    assert Checkpoint(pruned).shape
