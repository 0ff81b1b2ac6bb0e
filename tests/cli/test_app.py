"""The command line as a user meets it: exit codes, one clear line for each mistake."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.cli.app import INTERRUPTED
from edgeprune.errors import EdgePruneError
from edgeprune.records import Verdict
from tests.conftest import Cli, run_cli

RUN = ("run", "MODEL", "--target", "local", "--budget", "100 tokens < 75%")
COMMANDS: tuple[list[str], ...] = (
    [], ["run"], ["plan"], ["profile"], ["export"], ["bench"], ["eval"],
    ["judge"], ["recover"], ["sparsify"], ["target"],
    ["target", "list"], ["target", "check"], ["target", "trust"], ["target", "probe"],
    ["target", "setup"],
)


def assert_one_line(done: subprocess.CompletedProcess[str], status: int, *named: str) -> None:
    """Check that a command failed as it should: its exit code, one line, what it names."""
    assert done.returncode == status, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    for word in named:
        assert word in line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli: Cli, command: list[str]) -> None:
    done = cli(*command, "--help")
    assert done.returncode == 0
    if command != ["target"]:
        assert "Example: edgeprune" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = ("import sys\nfrom edgeprune.cli.app import main\nmain(['--help'])\n"
            "heavy = {'torch', 'transformers', 'scipy', 'paramiko', 'llama_cpp', 'trl'}\n"
            "sys.exit(len(heavy & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False,
                          capture_output=True).returncode == 0


@pytest.mark.parametrize("arguments", [
    ("run", "smollm2", "--target", "nowhere", "--budget", "ram < 1 GB"),
    ("bench", "nowhere.gguf", "--target", "local"),
    ("export", "nowhere", "a.gguf"),
    ("package", "nowhere.gguf", "--target", "local", "--version", "v1", "--out", "v1"),
    ("eval", "nowhere"),
    ("sparsify", "nowhere", "out", "--method", "wanda", "--sparsity", "2"),
])
def test_what_is_refused_at_once_does_not_wait_for_torch(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    code = ("import sys\nfrom edgeprune.cli.app import main\n"
            "refused = main(sys.argv[1:])\n"
            "sys.exit(99 if 'torch' in sys.modules else refused)")
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode in {2, 6}, done.stderr


@pytest.mark.parametrize("slow_s", [0.0, 0.2])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_is_not_lost_where_nothing_can_be_raised(name: str, slow_s: float) -> None:
    """Nor where the machine is so slow that it is given again before it can be raised."""
    code = ("import ctypes, os, signal, time\n"
            "from edgeprune.cli.console import heed_signals\n"
            # what a shell starts in the background ignores it
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"set, waits = signal.setitimer, [{slow_s}]\n"
            "def slowly(*timer):\n"
            "    set(*timer)\n"
            "    time.sleep(waits.pop() if waits else 0)\n"
            "signal.setitimer = slowly\n"
            "heed_signals()\n"
            "@ctypes.CFUNCTYPE(None)\n"
            "def called_by_c():\n"
            f"    os.kill(os.getpid(), signal.{name})\n"
            "    for _ in range(100): pass\n"
            "called_by_c()\n"
            "time.sleep(30)\n"
            "print('never')\n")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert "ignored" not in done.stderr


def test_the_version_is_told(cli: Cli) -> None:
    assert cli("--version").stdout.strip() == "0.1.0"


def test_a_wrong_path_exits_6(cli: Cli) -> None:
    assert_one_line(cli(*RUN[:1], "no/such/model", *RUN[2:]), 6, "no/such/model", "smollm2")


def test_an_unsupported_architecture_exits_6(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(
        json.dumps({"model_type": "gemma3", "architectures": ["Gemma3ForCausalLM"]}))
    assert_one_line(cli(*RUN[:1], "other", *RUN[2:]), 6, "gemma3", "supported")


@pytest.mark.parametrize(("change", "named"), [
    (("--budget", "be quick"), "be quick"),
    (("--target", "nowhere"), "nowhere.toml"),
    (("--quant", "Q4_K_XL"), "Q4_K_M"),
    (("--name", "../up"), "../up"),
    (("--calibration", ""), "an empty argument after --calibration"),
    (("--evaluate=",), "an empty argument for --evaluate"),
    (("--runs=  ",), "an empty argument for --runs"),
])
def test_bad_options_exit_2(cli: Cli, small: Path, change: tuple[str, ...], named: str) -> None:
    assert_one_line(cli(*RUN[:1], str(small), *RUN[2:], *change), 2, named)


def test_what_typer_refuses_exits_2(cli: Cli) -> None:
    assert cli("run", "smollm2").returncode == 2
    assert cli("dance").returncode == 2


def test_an_unreachable_host_exits_5(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/off.toml").write_text('host = "127.0.0.1"\nport = 1\n')
    assert_one_line(cli("target", "check", "off"), 5, "cannot reach 127.0.0.1:1", "sshd")


def test_a_missing_key_file_exits_5(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/off.toml").write_text(
        'host = "127.0.0.1"\nport = 1\nknown_hosts = "nothing"\n')
    assert_one_line(cli("target", "check", "off"), 5, "nothing", "known_hosts")


def test_this_machine_needs_no_trust(cli: Cli) -> None:
    assert_one_line(cli("target", "trust", "local"), 2, "this machine")


def test_targets_are_listed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/board.toml").write_text('host = "10.1.2.3"\nuser = "me"\n')
    done = cli("target", "list")
    assert done.stdout.splitlines() == [f"{'local':<20} this machine",
                                        f"{'board':<20} me@10.1.2.3"]
    assert [t["name"] for t in json.loads(cli("target", "list", "--json").stdout)] == [
        "local", "board"]


def test_this_machine_is_probed(cli: Cli) -> None:
    facts = json.loads(cli("target", "probe", "local", "--json").stdout)
    assert facts["cpus"] >= 1
    assert facts["emulated"] is False
    shown = cli("target", "probe", "local").stdout
    for fact in ("architecture", "cpu model", "cpu features", "ram", "kernel", "python"):
        assert f"\n{fact}" in f"\n{shown}"
    assert cli("target", "check", "local").returncode == 0


def test_the_local_runtime_tells_its_kernels(cli: Cli) -> None:
    done = cli("target", "setup", "local", "--json")
    assert "CPU" in json.loads(done.stdout)["system_info"]


@pytest.mark.slow
def test_a_shape_is_profiled_without_weights(cli: Cli, small: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text((small / "config.json").read_text())
    done = cli("profile", "bare", "--target", "local", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["threads"] == 1
    assert found["model"]["prices"]["token_ms"]
    assert found["samples"][0]["measurement"]["token_ns"]
    shown = cli("profile", "bare", "--target", "local", "--threads", "1").stdout
    for part in ("kB sent", "roofline", "KV cache", "profile: profiles/local/"):
        assert part in shown


@pytest.mark.parametrize("command", [
    ("export", "a.gguf"), ("export", "a", "--format", "onnx:fp32"),
    ("sparsify", "a", "--method", "magnitude", "--sparsity", "0.5")])
def test_a_disk_that_takes_no_more_is_told(
    small: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # no file gets larger
    try:
        done = run_cli(tmp_path, command[0], str(small), *command[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_one_line(done, 2, "the disk takes no more", "another disk")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_export_and_bench(cli: Cli, small: Path, tmp_path: Path) -> None:
    done = cli("export", str(small), "out/small.gguf", "--quant", "q8_0")
    assert done.returncode == 0, done.stderr
    assert "Q8_0" in done.stdout
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["small.gguf"]
    assert_one_line(cli("export", str(small), "out/small.gguf"), 2, "--force")
    assert cli("export", str(small), "out/small.gguf", "--force").returncode == 0
    # what --force may replace is an artifact, never the model or anything else
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "model").symlink_to(small)
    for destination, options, named in (
        ("mine", (), "not a file"), ("mine", ("--format", "onnx:fp32"), "not a model's directory"),
        ("out/small.gguf", ("--format", "onnx:fp32"), "not a directory"),
        ("model", (), "the model itself"), (str(small.parent), (), "the model itself"),
    ):
        assert_one_line(cli("export", str(small), destination, "--force", *options), 2, named)
    assert_one_line(cli("export", "out/small.gguf", "out/small.gguf", "--force"), 2, "itself")
    assert_one_line(cli("export", str(small), "mine/thesis.txt/a.gguf"), 2, "thesis.txt",
                    "another path")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"
    bench = ("bench", "out/small.gguf", "--target", "local", "--prompt", "4", "--new", "3")
    done = cli(*bench, "--requests", "2", "--json")
    assert done.returncode in {0, 4}  # 4: something else used the machine
    assert len(json.loads(done.stdout)["token_ns"]) == 2
    assert "peak RAM" in cli(*bench).stdout
    (tmp_path / "text").write_text("no model")
    assert_one_line(cli("bench", "text", "--target", "local"), 6, "neither a GGUF file")


SPARSIFY = ("--method", "sparsegpt", "--pattern", "2:4", "--quant", "Q8_0")


@pytest.mark.slow
def test_sparsify_writes_a_model_and_says_what_the_zeros_do(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    done = cli("sparsify", str(small), "out/sparse", *SPARSIFY, "--target", "local", "--json")
    assert done.returncode in {0, 4}, done.stderr  # 4: something else used the machine
    told = json.loads(done.stdout)
    assert (told["method"], told["pattern"], told["zero_fraction"]) == ("sparsegpt", "2:4", 0.5)
    assert len(told["matrices"]) == 42
    assert told["surviving_fraction"] == 1
    ratio = told["speed"]["latency_ratio"]
    assert 0 < ratio["low"] <= ratio["point"] <= ratio["high"]
    assert len(told["speed"]["comparison"]["pruned"]["token_ns"]) == 10
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["sparse"]  # nothing temporary
    assert_one_line(cli("sparsify", str(small), "out/sparse", *SPARSIFY), 2, "--force")
    shown = cli("sparsify", str(small), "out/sparse", "--method", "magnitude", "--sparsity", "0.3",
                "--quant", "Q8_0", "--force")
    assert shown.returncode == 0, shown.stderr
    for part in ("down_proj", "30.00%", "perplexity", "do not make llama.cpp", "model: out/sparse"):
        assert part in shown.stdout


@pytest.mark.parametrize(("arguments", "named"), [
    (("--method", "wanda"), ("neither", "--sparsity", "--pattern")),
    (("--method", "wanda", "--sparsity", "0.5", "--pattern", "2:4"), ("both",)),
    (("--method", "wanda", "--sparsity", "1.5"), ("1.5", "between 0 and 1")),
    (("--method", "wanda", "--pattern", "2:5"), ("2:5", "256")),
    (("--method", "obs", "--sparsity", "0.5"), ("'obs'", "sparsegpt")),
    (("--method", "wanda", "--sparsity", "0.5", "--target", "nowhere"), ("nowhere.toml",)),
    (("--method", "wanda", "--sparsity", "0.5", "--quant", "Q1"), ("'Q1'",)),
])
def test_bad_sparsity_exits_2_and_writes_nothing(
    cli: Cli, small: Path, tmp_path: Path, arguments: tuple[str, ...], named: tuple[str, ...]
) -> None:
    assert_one_line(cli("sparsify", str(small), "out", *arguments), 2, *named)
    assert not list(tmp_path.iterdir())


def test_a_calibration_file_that_is_not_there_exits_6(cli: Cli, small: Path) -> None:
    assert_one_line(cli("sparsify", str(small), "out", "--method", "wanda", "--sparsity", "0.5",
                        "--calibration", "no.txt"), 6, "no.txt")


def test_help_names_every_exit_code(cli: Cli) -> None:
    kinds: list[type[EdgePruneError]] = [EdgePruneError, *EdgePruneError.__subclasses__()]
    codes = {kind.exit_code for kind in kinds} | {verdict.exit_code for verdict in Verdict} | {
        INTERRUPTED}
    told = cli("--help").stdout.split("Exit codes:")[1].split("Example:")[0]
    assert {int(number) for number in re.findall(r"\d+", told)} == codes
