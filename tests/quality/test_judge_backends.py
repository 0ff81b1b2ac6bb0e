"""Judges that are really asked: llama-cpp-python's own server, and a GGUF file."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeprune.errors import JudgeError, UsageError
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.pruning.surgery import prune
from edgeprune.quality.judge_backends import EndpointJudge, open_judge
from edgeprune.quality.llm_judge import Judge, Judged, Pair, Replying, judge_artifact

pytestmark = pytest.mark.smollm2
PROMPTS = ["What is the capital of France?", "Write a sentence about the sea.",
           "Why is the sky blue?", "Name three fruits.", "How do birds fly?",
           "What is a computer?", "Tell me about dogs.", "What do bees make?",
           "Give me advice on sleeping well.", "What is the sun made of?",
           "How do I boil an egg?", "What is a mountain?"]


@pytest.fixture(scope="module")
def original(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the real SmolLM2."""
    file = tmp_path_factory.mktemp("original") / "smollm2.gguf"
    export_gguf(Checkpoint(smollm2), smollm2 / "tokenizer.gguf", file, quant="Q8_0", name="s")
    return file


@pytest.fixture(scope="module")
def half(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give SmolLM2 without its first half, which makes it talk nonsense."""
    directory = tmp_path_factory.mktemp("half")
    prune(Checkpoint(smollm2), Cuts(layers=tuple(range(15))), {}, directory / "half")
    file = directory / "half.gguf"
    export_gguf(Checkpoint(directory / "half"), smollm2 / "tokenizer.gguf", file, quant="Q8_0",
                name="half")
    return file


@contextmanager
def served(model: Path, *options: str) -> Iterator[str]:
    """Serve a model by llama-cpp-python's server; give its URL."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen(  # it says much
        [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port),
         "--n_ctx", "2048", "--n_threads", "1", "--n_threads_batch", "1", *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(1200):
            assert process.poll() is None
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5)  # noqa: S310
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def judged(artifact: Path, original: Path, judge: Judge, cache: Path,
           temperature: float = 0.0, prompts: Sequence[str] = PROMPTS) -> Judged:
    """Let a judge compare, and print what it holds."""
    found = judge_artifact(artifact, original, prompts, judge, cache,
                           how=Replying(n_new=24, temperature=temperature))
    print(found.model_dump_json())
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory for replies, which are made once."""
    return tmp_path_factory.mktemp("cache")


def test_the_original_is_preferred_over_one_with_half_its_layers(
    original: Path, half: Path, cache: Path
) -> None:
    with open_judge(str(original), None) as judge:
        found = judged(half, original, judge, cache)
        assert found.losses > found.wins
        assert found.loss.low > 0
        few = judged(half, original, judge, cache, prompts=PROMPTS[:4])
        back = judged(original, half, judge, cache, prompts=PROMPTS[:4])
    assert (back.wins, back.ties, back.losses) == (few.losses, few.ties, few.wins)


def test_two_copies_of_a_model_are_a_tie(original: Path, cache: Path) -> None:
    with open_judge(str(original), None) as judge:
        same = judged(original, original, judge, cache, prompts=PROMPTS[:8])
        drawn = judged(original, original, judge, cache, temperature=0.7, prompts=PROMPTS[:8])
    assert same.ties == 8 - same.invalid
    assert drawn.loss.low <= 0 <= drawn.loss.high


@pytest.mark.parametrize("options", [("--logits_all", "true"), ()])
def test_a_server_is_asked(
    original: Path, half: Path, cache: Path, options: tuple[str, ...]
) -> None:
    with served(original, *options) as url, open_judge(url, "any", workers=2) as judge:
        found = judged(half, original, judge, cache, prompts=PROMPTS[:4])
    assert found.wins + found.ties + found.losses + found.invalid == 4


def test_a_judge_that_is_not_there_is_told() -> None:
    judge = EndpointJudge("http://127.0.0.1:9/v1", "any", timeout_s=2, retries=0)
    with pytest.raises(JudgeError, match=r"127\.0\.0\.1:9/v1 cannot be asked.*run again"):
        judge.ask(Pair("A or B?", "A", "B"))
    with pytest.raises(UsageError, match="--judge-model"), open_judge("http://x/v1", None):
        pass
    with pytest.raises(UsageError, match="no such judge: got 'nobody'"), open_judge("nobody", None):
        pass
