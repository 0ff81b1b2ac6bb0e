"""Tasks by lm-eval on artifacts, from local files, against transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaForCausalLM

from edgeprune.errors import InputError, UsageError
from edgeprune.export.gguf import export_gguf
from edgeprune.export.onnx import export_onnx
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.onnx_formats import FLOAT
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.quality.lm import ArtifactLM
from edgeprune.quality.tasks import task_scores
from edgeprune.quality.windows import opened

CONTEXT = 96
QUESTIONS = [("The sky is", [" blue", " made of stone", " seven"]),
             ("Two and two are ", ["four", "a long river of the north"]),
             ("A game that was", [" released in Japan", " of the", " a"])]
TEXTS = ["The game was released in Japan", "He died in the year of the war", "a\tb and the end"]


class Request:
    """One of lm-eval's requests."""

    def __init__(self, *args: object) -> None:
        self.args = args


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def spoken(
    request: pytest.FixtureRequest, small: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Give `small` as an artifact of either kind, with its tokenizer."""
    directory = tmp_path_factory.mktemp("spoken")
    tokenizer = tokenizer_of(small, directory / "tokenizer.gguf")
    if request.param == "onnx":
        export_onnx(Checkpoint(small), tokenizer, directory / "onnx", quant=FLOAT)
        return directory / "onnx"
    export_gguf(Checkpoint(small), tokenizer, directory / "a.gguf", quant="F32", name="small")
    return directory / "a.gguf"


@pytest.fixture(scope="module")
def theirs(small: Path) -> HFLM:
    """Give lm-eval's own model of the checkpoint."""
    return HFLM(LlamaForCausalLM.from_pretrained(small, dtype=torch.float32), device="cpu",
                tokenizer=AutoTokenizer.from_pretrained(small), max_length=CONTEXT, batch_size=1)


def test_likelihoods_and_replies_are_those_of_lm_evals_own_model(
    spoken: Path, theirs: HFLM
) -> None:
    pairs = [(question, choice) for question, choices in QUESTIONS for choice in choices]
    pairs += [("", "no context"), ("word " * 200, "after a context that is too long")]
    texts = [*TEXTS, "one two three four. " * 60]
    with opened(spoken, context=CONTEXT) as model:
        lm = ArtifactLM(model, CONTEXT)
        found = lm.loglikelihood([Request(*pair) for pair in pairs])
        rolling = lm.loglikelihood_rolling([Request(text) for text in texts])
        said = lm.generate_until([Request("The game", {"until": [], "max_gen_toks": 9})])
    expected = theirs.loglikelihood([_instance("loglikelihood", pair) for pair in pairs])
    for (ours, greedy), (value, same) in zip(found, expected, strict=True):
        assert ours == pytest.approx(value, rel=1e-3)
        assert greedy == same
    assert rolling == pytest.approx(theirs.loglikelihood_rolling(
        [_instance("loglikelihood_rolling", (text,)) for text in texts]), rel=1e-3)
    assert said == theirs.generate_until([_instance("generate_until", (
        "The game", {"until": ["\x00never"], "max_gen_toks": 9, "do_sample": False}))])


def _instance(kind: str, arguments: tuple[object, ...]) -> object:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_local_files_are_scored(spoken: Path, tmp_path: Path) -> None:
    choices, words = tmp_path / "choices.jsonl", tmp_path / "words.jsonl"
    choices.write_text("\n".join(json.dumps({"question": q, "choices": c, "answer": 0})
                                 for q, c in QUESTIONS), encoding="utf-8")
    words.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    scores = {(s.task, s.metric): s for s in task_scores(spoken, [str(choices), str(words)])}
    assert set(scores) == {("choices", "acc"), ("choices", "acc_norm"), ("words", "acc"),
                           ("words", "perplexity")}
    assert all(score.n_samples == 3 for score in scores.values())
    with opened(spoken) as model:
        likelihoods = ArtifactLM(model, 512).loglikelihood(
            [Request(text.rsplit(" ", 1)[0], " " + text.rsplit(" ", 1)[1]) for text in TEXTS])
    expected = math.exp(-sum(value for value, _ in likelihoods) / 3)
    assert scores["words", "perplexity"].value == pytest.approx(expected)
    with opened(spoken) as model:
        lm = ArtifactLM(model, 512)
        # lm-eval puts a blank between question and choice
        asked = [lm.loglikelihood([Request(question, f" {choice}") for choice in choices])
                 for question, choices in QUESTIONS]
    right = [max(found)[0] == found[0][0] for found in asked]
    assert scores["choices", "acc"].value == pytest.approx(sum(right) / 3)


def test_a_yaml_task_of_lm_evals_own_kind_is_scored(spoken_file: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(
        json.dumps({"page": text}) for text in TEXTS), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(f"""
task: mine_alone
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list: [{{metric: word_perplexity}}]
""", encoding="utf-8")
    (score,) = task_scores(spoken_file, [str(tmp_path / "mine.yaml")], limit=2)
    assert (score.task, score.metric, score.n_samples) == ("mine_alone", "word_perplexity", 2)
    assert score.value > 1


@pytest.mark.parametrize(("line", "what"), [
    ("{", "line 1 is no example"), ('{"question": "a", "choices": ["b"], "answer": 1}', "line 1"),
    ('{"text": "one"}', "line 1"), ("", "of one form"),
    ('{"text": "a b"}\n{"question": "a", "choices": ["b"], "answer": 0}', "of one form")])
def test_bad_task_files_are_refused(gguf_file: Path, tmp_path: Path, line: str, what: str) -> None:
    (tmp_path / "a.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=what):
        task_scores(gguf_file, [str(tmp_path / "a.jsonl")])


@pytest.mark.slow
def test_unknown_tasks_are_refused(spoken_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no_such_task"):
        task_scores(spoken_file, ["no_such_task"])
    with pytest.raises(InputError, match="cannot be read"):
        task_scores(spoken_file, [str(tmp_path / "no.jsonl")])
