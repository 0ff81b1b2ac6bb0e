"""Models in the form that people's tools write them: each works, or one line says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex as Pattern
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

from edgeprune.errors import InputError
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.gguf import GgufModel
from edgeprune.model.source import resolve_model
from edgeprune.model.stock import stock_config, stock_model, stock_tokenizer
from edgeprune.model.tensors import tensor_specs
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.quality.verified import export_verified
from tests.cli.test_app import assert_one_line
from tests.conftest import Cli
from tests.tiny import TOKENIZER_VOCABULARY, hf_logits, make_tiny

TOKENS = [5, 17, 101, 33]
TEXT = "The board's 2 cores were busy:\n\n  they'd been counting 12345 tokens."


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model", tokenizer=True)


def _change(file: Path, **entries: Any) -> None:
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, **entries}))


def _exported(directory: Path, quant: str = "F32") -> Path:
    checkpoint = Checkpoint(directory)
    tokenizer = tokenizer_of(directory, directory.parent / "made.gguf",
                             checkpoint.shape.vocab_size)
    artifact = directory.parent / ("onnx" if quant.startswith("onnx") else "made.f32.gguf")
    export_verified(checkpoint, tokenizer, artifact, quant=quant, name="made")
    return artifact


def _agrees(artifact: Path, expected: torch.Tensor) -> None:
    with GgufModel(artifact, exact=True) as opened:
        ours = opened.logits(TOKENS)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("entries", [
    {"tokenizer_class": "TokenizersBackend"},
    {"extra_special_tokens": ["<s>", "</s>"]},
    {"tokenizer_class": "NobodysTokenizer", "auto_map": {"AutoTokenizer": ["x.Y", None]}},
])
def test_tokenizer_json_alone_says_how_text_is_split(model: Path, entries: dict[str, Any]) -> None:
    _change(model / "tokenizer_config.json", **entries)
    theirs = Tokenizer.from_file(str(model / "tokenizer.json"))
    with GgufModel(_exported(model)) as opened:
        assert opened.tokenize(TEXT) == theirs.encode(TEXT, add_special_tokens=False).ids
        assert opened.begin == theirs.token_to_id("<s>")
    # and transformers, of either generation, reads it for training
    assert stock_tokenizer(Checkpoint(model)).encode(
        TEXT, add_special_tokens=False) == theirs.encode(TEXT, add_special_tokens=False).ids


def test_rows_without_a_token_are_padded_as_llama_cpp_does(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", tokenizer=True)
    padded = make_tiny(tmp_path / "padded", vocab_size=TOKENIZER_VOCABULARY + 64)
    for file in model.glob("*token*"):
        shutil.copyfile(file, padded / file.name)
    artifact = _exported(padded)
    _agrees(artifact, hf_logits(padded, TOKENS))
    fields = gguf.GGUFReader(artifact).fields
    names = fields["tokenizer.ggml.tokens"].contents()
    assert len(names) == TOKENIZER_VOCABULARY + 64
    assert names[-1] == f"[PAD{TOKENIZER_VOCABULARY + 63}]"
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert set(kinds[-64:]) == {int(gguf.TokenType.UNUSED)}
    # a GGUF file of ours goes the way back, and out again
    again = resolve_model(str(artifact))[1]
    _agrees(_exported(again), hf_logits(again, TOKENS))


def test_tokens_without_a_row_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", tokenizer=True)
    short = make_tiny(tmp_path / "short", vocab_size=TOKENIZER_VOCABULARY - 24)
    for file in model.glob("*token*"):
        shutil.copyfile(file, short / file.name)
    with pytest.raises(InputError, match=r"1024 tokens, 1000 rows.*resize_token_embeddings"):
        _exported(short)
    assert not (tmp_path / "made.f32.gguf").exists()


def test_a_token_number_below_zero_stands_for_none(model: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        _change(model / name, pad_token_id=-1)
    fields = gguf.GGUFReader(_exported(model)).fields
    assert "tokenizer.ggml.padding_token_id" not in fields
    assert "tokenizer.ggml.bos_token_id" in fields


def test_the_tensors_say_whether_a_model_is_quantized(model: Path) -> None:
    expected = hf_logits(model, TOKENS)
    _change(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    _agrees(_exported(model), expected)
    assert "quantization_config" not in stock_config(
        Checkpoint(model).shape, Checkpoint(model).config).to_dict()

    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    whole = weights.pop(f"{name}.weight")
    save_file({**weights, f"{name}.qweight": whole.int(), f"{name}.scales": whole[0].clone()},
              model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{name}.weight .*is quantized.*{name}.qweight"):
        Checkpoint(model)
    # bitsandbytes packs two weights in a byte, under the matrix's own name
    save_file({**weights, f"{name}.weight": torch.zeros(whole.numel() // 2, 1, dtype=torch.uint8),
               f"{name}.weight.absmax": whole[0].clone()},
              model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{name}.weight .*is quantized.*U8"):
        Checkpoint(model)
    save_file({**weights, f"{name}.weight": whole.to(torch.float8_e4m3fn)},
              model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{name}.weight .*is quantized.*F8_E4M3"):
        Checkpoint(model)


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "linear", "factor": 2.0}, {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256}], ids=["none", "linear", "llama3"])
def test_rotary_parameters_of_transformers_5_are_read_everywhere(
    tmp_path: Path, scaling: dict[str, Any]
) -> None:
    as_4 = make_tiny(tmp_path / "four", rope_theta=5000.0, rope_scaling=scaling or None)
    expected = hf_logits(as_4, TOKENS)
    model = tmp_path / "model"
    shutil.copytree(as_4, model)
    config = json.loads((model / "config.json").read_text())
    for name in ("rope_theta", "rope_scaling", "rope_parameters"):
        config.pop(name, None)
    config["rope_parameters"] = {"rope_type": "default", **scaling, "rope_theta": 5000.0}
    (model / "config.json").write_text(json.dumps(config))
    _agrees(_exported(model), expected)
    _exported(model, "onnx:fp32")  # held against the checkpoint
    # a teacher of distillation
    with torch.inference_mode():
        taught = stock_model(Checkpoint(model), torch.float32)(torch.tensor([TOKENS])).logits[0]
    assert torch.allclose(taught, expected, atol=1e-4)


def test_one_file_is_read_before_an_index_as_transformers_does(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    other = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(other, model / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(
        other, "model-00001-of-00001.safetensors")}))
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    name = "model.norm.weight"
    assert torch.equal(Checkpoint(model).tensor(name), theirs.get_parameter(name).data)


def test_an_adapter_is_named_with_what_makes_it_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/llama"}')
    with pytest.raises(InputError, match=r"LoRA adapter.*org/llama.*--adapter"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json",
                                  "tokenizer_config.json"])
def test_a_git_lfs_pointer_is_named(model: Path, name: str) -> None:
    (model / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(InputError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        _exported(model)


def test_a_pre_tokenizer_that_is_seldom_is_found(model: Path) -> None:
    file = model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Pattern(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
            r"\s*[\r\n]|\s+(?!\S)|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.save(str(file))
    with GgufModel(_exported(model)) as opened:
        assert opened.tokenize(TEXT) == tokenizer.encode(TEXT, add_special_tokens=False).ids


def _with_biases(directory: Path) -> Path:
    return make_tiny(directory, attention_bias=True, mlp_bias=True)


def test_every_tensor_of_a_gguf_file_comes_through(tmp_path: Path) -> None:
    source = Checkpoint(_with_biases(tmp_path / "source"))
    file = tmp_path / "model.gguf"
    export_gguf(source, None, file, quant="F16", name="model")
    again = Checkpoint(resolve_model(str(file))[1])
    assert again.shape.attention_bias
    assert again.shape.mlp_bias
    for spec in tensor_specs(source.shape):
        assert torch.equal(again.tensor(spec.name), source.tensor(spec.name).half()), spec.name


@pytest.mark.parametrize(("tensors", "said"), [
    (lambda found: {**found, "blk.0.attn_q_norm.weight": found["blk.0.attn_norm.weight"]},
     r"no place for.*blk.0.attn_q_norm.weight"),
    (lambda found: {name: array for name, array in found.items() if name != "blk.1.ffn_up.weight"},
     r"blk.1.ffn_up.weight is missing"),
    (lambda found: {**found, "output_norm.weight": found["output_norm.weight"][:-1]},
     r"output_norm.weight .*should be \(64,\)"),
])
def test_what_is_too_much_or_too_little_in_a_gguf_file_is_an_error(
    tmp_path: Path, said: str,
    tensors: Callable[[dict[str, np.ndarray[Any, Any]]], dict[str, np.ndarray[Any, Any]]],
) -> None:
    file = tmp_path / "model.gguf"
    export_gguf(Checkpoint(make_tiny(tmp_path / "m")), None, file, quant="F16", name="m")
    _rewritten(file, tmp_path / "other.gguf", tensors)
    with pytest.raises(InputError, match=said):
        resolve_model(str(tmp_path / "other.gguf"))


def test_a_bias_that_others_lack_is_carried(tmp_path: Path) -> None:
    """As in files of tools that write no bias of the output projection."""
    source = _with_biases(tmp_path / "source")
    file = tmp_path / "model.gguf"
    export_gguf(Checkpoint(source), None, file, quant="F32", name="model")
    _rewritten(file, tmp_path / "other.gguf", lambda found: {
        name: array for name, array in found.items() if not name.endswith("attn_output.bias")})
    again = Checkpoint(resolve_model(str(tmp_path / "other.gguf"))[1])
    assert not again.tensor("model.layers.0.self_attn.o_proj.bias").any()
    with GgufModel(tmp_path / "other.gguf", exact=True) as opened:
        _agrees(_exported(again.path), torch.from_numpy(opened.logits(TOKENS)))


def test_a_part_of_a_gguf_file_is_told_from_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "model-00001-of-00002.gguf"
    export_gguf(Checkpoint(make_tiny(tmp_path / "m")), None, file, quant="F16", name="m")
    _rewritten(file, tmp_path / "part.gguf", lambda found: found, {"split.count": 2})
    with pytest.raises(InputError, match=r"one part of 2.*llama-gguf-split --merge"):
        resolve_model(str(tmp_path / "part.gguf"))


@pytest.mark.parametrize(("more", "factor"), [
    ({"llama.rope.scaling.factor": 4.0}, 4.0), ({"llama.rope.scale_linear": 2.0}, 2.0),
    ({"llama.rope.scaling.factor": 1.0}, None)])
def test_rotary_scaling_is_linear_where_a_gguf_file_names_no_kind(
    tmp_path: Path, more: dict[str, float], factor: float | None
) -> None:
    file = tmp_path / "model.gguf"
    export_gguf(Checkpoint(make_tiny(tmp_path / "m")), None, file, quant="F32", name="m")
    _rewritten(file, tmp_path / "other.gguf", lambda found: found, more)
    again = Checkpoint(resolve_model(str(tmp_path / "other.gguf"))[1])
    scaling = again.shape.rope_scaling
    assert (scaling.factor if scaling else None) == factor
    with GgufModel(tmp_path / "other.gguf", exact=True) as opened:
        _agrees(_exported(again.path), torch.from_numpy(opened.logits(TOKENS)))


@pytest.mark.parametrize(("more", "said"), [
    ({"llama.attention.head_count_kv": [2, 2, 1, 2]}, r"head_count_kv differs by layer"),
    ({"llama.attention.head_count": 0}, "head_count is no number above zero: got 0"),
    ({"llama.context_length": None}, "context_length is no number above zero"),
    ({"llama.rope.scaling.type": "yarn"}, "unsupported rope scaling: got 'yarn'"),
])
def test_numbers_of_a_gguf_file_that_are_not_supported_are_named(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    file = tmp_path / "model.gguf"
    export_gguf(Checkpoint(make_tiny(tmp_path / "m")), None, file, quant="F32", name="m")
    _rewritten(file, tmp_path / "other.gguf", lambda found: found, more)
    with pytest.raises(InputError, match=said) as refused:
        resolve_model(str(tmp_path / "other.gguf"))
    assert "\n" not in str(refused.value)


def test_layers_that_are_alike_may_be_listed(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    export_gguf(Checkpoint(make_tiny(tmp_path / "m")), None, file, quant="F32", name="m")
    _rewritten(file, tmp_path / "other.gguf", lambda found: found,
               {"llama.attention.head_count_kv": [2, 2, 2, 2]})
    again = Checkpoint(resolve_model(str(tmp_path / "other.gguf"))[1])
    assert again.shape.num_key_value_heads == 2


@pytest.mark.parametrize(("entries", "said"), [
    ({"rope_scaling": "linear"}, "rope_scaling should be an object: got 'linear'"),
    ({"sliding_window": "all"}, "sliding_window should be a whole number: got 'all'"),
    ({"max_position_embeddings": "x"}, "max_position_embeddings should be a whole number"),
    ({"num_key_value_heads": 3}, r"\(num_attention_heads 4 is not a multiple of"),
    ({"architectures": 5}, "architectures should be a list: got 5"),
    ({"model_type": []}, r"model_type should be a text: got \[\]"),
])
def test_an_entry_of_a_config_that_cannot_be_used_is_named(
    model: Path, entries: dict[str, Any], said: str
) -> None:
    _change(model / "config.json", **entries)
    with pytest.raises(InputError, match=said) as refused:
        Checkpoint(model)
    assert "pydantic" not in str(refused.value)


def test_home_is_found_in_quotes_and_the_model_is_not_written_over(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = cli("export", "~/model", "~/new/out.gguf", "--quant", "F16")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "new/out.gguf"
    before = file.read_bytes()
    assert_one_line(cli("export", "~/new/out.gguf", str(file), "--force", "--quant", "Q8_0"), 2,
                    "the model itself")
    assert file.read_bytes() == before
    assert_one_line(cli("export", "~nobody-of-that-name/m", "x.gguf"), 6, "no such model")
    assert_one_line(cli("export", "", "x.gguf"), 2, "an empty argument after export")
    (model / "tokenizer.json").write_text("{")
    assert_one_line(cli("export", "~/model", "made/on/the/way.gguf"), 6, "tokenizer")
    assert not (tmp_path / "made").exists()


def _rewritten(
    source: Path, destination: Path,
    change: Callable[[dict[str, np.ndarray[Any, Any]]], dict[str, np.ndarray[Any, Any]]],
    more: dict[str, Any] | None = None,
) -> None:
    """Write a GGUF file again with other tensors and numbers."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(destination, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture", *(more or {}))):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    adds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
            list: writer.add_array}
    for name, value in (more or {}).items():
        if value is not None:
            adds[type(value)](name, value)
    for name, array in change({tensor.name: tensor.data for tensor in reader.tensors}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_shape_that_transformers_5_refuses_of_a_llama_is_a_mistral(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", hidden_size=72, num_attention_heads=4)
    shape = Checkpoint(model).shape.replace(hidden_size=70)
    config = stock_config(shape)
    assert config.model_type == "mistral"
    assert config.sliding_window is None
    assert config.head_dim == 16


def test_a_mistral_computes_what_transformers_does(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    MistralForCausalLM(MistralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=128, initializer_range=0.2,
        max_position_embeddings=512, sliding_window=None)).save_pretrained(tmp_path / "model")
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)(
            torch.tensor([TOKENS])).logits[0]
    _agrees(_exported(tmp_path / "model"), expected)


@pytest.mark.parametrize(("value", "quant", "said"), [
    (float("nan"), "F32", "no finite numbers"), (float("inf"), "onnx:fp32", "no finite numbers"),
    (1e6, "Q4_0", r"too large.*1e\+06, of at most 6.55e\+04")])
def test_weights_that_no_artifact_can_hold_are_named(
    model: Path, value: float, quant: str, said: str
) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"layers.2.mlp.up_proj.weight .*{said}"):
        _exported(model, quant)
    assert [path.name for path in model.parent.iterdir() if "made.f" in path.name] == []
