"""Every family computes what stock transformers does, after each kind of cut, and as artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeprune.errors import InputError, UsageError
from edgeprune.export.gguf import export_gguf
from edgeprune.export.onnx import export_onnx
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, Kept
from edgeprune.model.families import FAMILIES
from edgeprune.model.gguf import GgufModel
from edgeprune.model.onnx import OnnxModel
from edgeprune.model.shape import config_of_shape, shape_of_config, takes_heads
from edgeprune.model.source import resolve_model
from edgeprune.model.tensors import tensor_specs
from edgeprune.planning.moves import Kind, moves, moves_back
from edgeprune.planning.widths import served_components, served_heads, smallest_shapes
from edgeprune.pruning.components import principal_components
from edgeprune.pruning.compress import repaired_layers
from edgeprune.pruning.forward import output_of
from edgeprune.pruning.gradients import layer_gradients
from edgeprune.pruning.sample import Sample
from edgeprune.pruning.statistics import measure_statistics, read_hidden_moments
from edgeprune.pruning.surgery import cut_layers, prune, write_pruned
from edgeprune.quality.verified import export_verified
from edgeprune.run.strategies import check_strategy, strategy_of
from tests.tiny import KINDS, hf_logits, make_tiny

TOKENS = [5, 17, 101, 33, 64, 2]
# what makes a model of each family one that hides no mistake
ENTRIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True}, "mistral": {"sliding_window": None},
    "qwen2": {}, "qwen3": {},
    "granite": {"embedding_multiplier": 3.0, "attention_multiplier": 0.3,
                "residual_multiplier": 0.4, "logits_scaling": 2.5, "attention_bias": True},
    # four layers, the second of which sees all that was before; the others four tokens
    "gemma3_text": {"sliding_window": 4, "rope_theta": 1e6, "query_pre_attn_scalar": 16,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention",
                                    "sliding_attention"]},
    "smollm3": {"rope_theta": 1e4, "pad_token_id": None},
}
CUTS = {"nothing": Cuts(), "layers": Cuts(layers=(1, 2)), "ffn": Cuts(ffn_channels=32),
        "query heads": Cuts(query_heads=1), "groups": Cuts(kv_groups=1)}


def _close(ours: np.ndarray[Any, Any], theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3 * float(theirs.abs().max()), rtol=0)


def _computed(checkpoint: Checkpoint) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        output = output_of(checkpoint, cut_layers(checkpoint, Cuts(), {}), torch.tensor([TOKENS]))
        return np.asarray(output.head.logits(output.states)[0].numpy())


@pytest.fixture(params=[(family, kind) for family in FAMILIES for kind in KINDS],
                ids="-".join)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Give a tiny model of each family: GQA and MHA, tied and untied."""
    family, kind = request.param
    return make_tiny(tmp_path / "model", kind, family=family, **ENTRIES[family])


@pytest.mark.parametrize("cut", CUTS)
def test_logits_are_those_of_transformers_after_every_cut(
    model: Path, cut: str, tmp_path: Path
) -> None:
    shape = Checkpoint(model).shape
    cuts, width = CUTS[cut], shape.queries_per_group
    if cuts.query_heads >= width:
        return  # a group of one query head goes whole
    if not takes_heads(cuts.shape(shape)):
        left = shape.num_key_value_heads - cuts.kv_groups, width - cuts.query_heads
        assert left not in served_heads(shape)  # transformers 5 would refuse what is left
        return
    kept = {layer: Kept(
        kv_heads=tuple(range(shape.num_key_value_heads - cuts.kv_groups)),
        query_heads=tuple(i for i in range((shape.num_key_value_heads - cuts.kv_groups) * width)
                          if i % width >= cuts.query_heads),
        ffn_channels=tuple(range(cuts.ffn_channels, shape.intermediate_size)))
        for layer in range(shape.num_hidden_layers)}
    prune(Checkpoint(model), cuts, kept, tmp_path / "pruned")
    pruned = Checkpoint(tmp_path / "pruned")
    assert pruned.shape.family == shape.family
    expected = hf_logits(pruned.path, TOKENS)
    _close(_computed(pruned), expected)
    file = tmp_path / "pruned.gguf"
    if family_layers := shape.of.unrotated_every and cuts.layers:
        with pytest.raises(InputError, match="each 4th layer of a smollm3 model, and no other"):
            export_gguf(pruned, None, file, quant="F32", name="pruned")
        assert not list(tmp_path.glob("*.part"))
    else:
        export_gguf(pruned, None, file, quant="F32", name="pruned")
        with GgufModel(file, exact=True) as opened:
            _close(opened.logits(TOKENS), expected)
    if (cut in {"nothing", "groups"} or family_layers or
            (cut == "layers" and shape.of.local_layers)):
        export_onnx(pruned, None, tmp_path / "onnx", quant="onnx:fp32")
        with OnnxModel(tmp_path / "onnx") as graph:
            _close(graph.logits(TOKENS), expected)


def test_a_gguf_file_gives_the_model_back(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    source = Checkpoint(model)
    export_gguf(source, None, tmp_path / "file.gguf", quant="F32", name="file")
    again = Checkpoint(resolve_model(str(tmp_path / "file.gguf"))[1])
    assert again.shape.family == source.shape.family
    for spec in tensor_specs(source.shape):
        # to the stored weights of a norm llama.cpp's have one added
        atol = 1e-6 if source.shape.of.norm_offset and spec.is_norm else 0
        torch.testing.assert_close(again.tensor(spec.name), source.tensor(spec.name), rtol=0,
                                   atol=atol, msg=spec.name)
    expected = hf_logits(model, TOKENS)
    _close(hf_logits(again.path, TOKENS).numpy(), expected)


@pytest.fixture
def text() -> torch.Tensor:
    """Give random token ids to calibrate on."""
    return torch.randint(0, 128, (16, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_repair_knows_the_family(family: str, text: torch.Tensor, tmp_path: Path) -> None:
    """What is fitted comes nearer."""
    checkpoint = Checkpoint(make_tiny(tmp_path / "m", family=family, **ENTRIES[family]))
    cuts, seen = Cuts(ffn_channels=40), text[0].tolist()
    kept = {layer: Kept(kv_heads=(0, 1), query_heads=(0, 1, 2, 3), ffn_channels=tuple(range(56)))
            for layer in range(4)}
    prune(checkpoint, cuts, kept, tmp_path / "cut")
    layers = list(repaired_layers(checkpoint, cuts, kept, Sample.of_one_kind(text)))
    write_pruned(checkpoint, cuts, layers, tmp_path / "repaired")
    whole, cut, repaired = (hf_logits(tmp_path / name, seen) for name in ("m", "cut", "repaired"))
    assert (repaired - whole).square().mean() < 0.9 * (cut - whole).square().mean()
    # what a plan is judged by when it is built
    output = output_of(checkpoint, layers, text[:1])
    _close(output.head.logits(output.states)[0].numpy(), repaired)


@pytest.mark.parametrize("family", [name for name, of in FAMILIES.items() if not of.norms_after])
def test_components_know_the_family(family: str, text: torch.Tensor, tmp_path: Path) -> None:
    """A model computes in another basis what it did; a narrower one does so everywhere."""
    checkpoint = Checkpoint(make_tiny(tmp_path / "m", family=family, **ENTRIES[family]))
    whole = hf_logits(tmp_path / "m", text[0].tolist())
    measure_statistics(checkpoint, text, tmp_path / "statistics")
    basis = principal_components(read_hidden_moments(tmp_path / "statistics"))
    layers = repaired_layers(checkpoint, Cuts(), {}, Sample.of_one_kind(text), basis=basis)
    output = output_of(checkpoint, layers, text[:1])
    turned = output.head.logits(output.states)[0]
    torch.testing.assert_close(turned, whole, rtol=0, atol=1e-2 * float(whole.abs().max()))
    narrow = repaired_layers(checkpoint, Cuts(components=20), {}, Sample.of_one_kind(text),
                             basis=basis[:, :44])
    write_pruned(checkpoint, Cuts(components=20), narrow, tmp_path / "narrow")
    theirs = hf_logits(tmp_path / "narrow", TOKENS)
    _close(_computed(Checkpoint(tmp_path / "narrow")), theirs)
    export_gguf(Checkpoint(tmp_path / "narrow"), None, tmp_path / "narrow.gguf", quant="F32",
                name="narrow")
    with GgufModel(tmp_path / "narrow.gguf", exact=True) as opened:
        _close(opened.logits(TOKENS), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_autograd(family: str, tmp_path: Path) -> None:
    """Of what a family adds: head norms, and the embedding under its multiplier."""
    checkpoint = Checkpoint(make_tiny(tmp_path / "m", family=family, kind="gqa-untied",
                                      **ENTRIES[family]))
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    tokens = torch.tensor([TOKENS])
    model(tokens, labels=tokens).loss.backward()
    theirs = {name: weight.grad for name, weight in model.named_parameters()}
    for layer, found in layer_gradients(checkpoint, tokens, outer=True):
        prefix = f"model.layers.{layer}." if layer in range(4) else ""
        for name, gradient in found.first.items():
            torch.testing.assert_close(gradient, theirs[prefix + name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_what_a_family_has_no_place_for_is_refused_by_name(family: str, tmp_path: Path) -> None:
    shape = Checkpoint(make_tiny(tmp_path / "m", family=family, **ENTRIES[family])).shape
    with pytest.raises(UsageError, match=f"biases, which a {family} model has no place for"):
        check_strategy(strategy_of("flap"), shape)
    check_strategy(strategy_of("edgeprune"), shape)


@pytest.mark.parametrize(("strategy", "said"), [
    ("replaceme", "a norm stands behind the projections of a gemma3_text model"),
    ("llm-pruner-channel", "the scale of a gemma3_text model's embeddings follows hidden_size"),
])
def test_what_the_equations_of_gemma_do_not_allow_is_refused_by_name(
    strategy: str, said: str, tmp_path: Path
) -> None:
    shape = Checkpoint(make_tiny(tmp_path / "m", family="gemma3_text",
                                 **ENTRIES["gemma3_text"])).shape
    with pytest.raises(UsageError, match=said):
        check_strategy(strategy_of(strategy), shape)
    assert served_components(shape.replace(hidden_size=2048)) == (0,)


def test_layers_that_a_file_tells_apart_by_number_go_in_fours(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "m", family="smollm3", num_hidden_layers=9, **ENTRIES["smollm3"])
    checkpoint = Checkpoint(model)
    assert checkpoint.shape.unrotated_layers == (3, 7)
    layers = [move for move in moves(checkpoint.shape, Cuts()) if move.kind is Kind.LAYER]
    assert [move.describe() for move in layers] == ["drop layers 0 1 2 3", "drop layers 4 5 6 7"]
    first, second = (move.after(Cuts()) for move in layers)
    assert layers[1] in moves_back(checkpoint.shape, second)
    assert layers[1].before(second) == Cuts()
    assert not [move for move in moves(checkpoint.shape, first) if move.kind is Kind.LAYER]
    assert {left.num_hidden_layers for left in smallest_shapes(checkpoint.shape)} == {5}
    prune(checkpoint, second, {}, tmp_path / "pruned")
    pruned = Checkpoint(tmp_path / "pruned")
    export_gguf(pruned, None, tmp_path / "pruned.gguf", quant="F32", name="pruned")
    with GgufModel(tmp_path / "pruned.gguf", exact=True) as opened:
        _close(opened.logits(TOKENS), hf_logits(pruned.path, TOKENS))
    for name in ("uniform", "shortgpt", "replaceme"):
        with pytest.raises(UsageError, match="but a smollm3 model loses fours"):
            check_strategy(strategy_of(name), checkpoint.shape)
    for name in ("edgeprune", "sleb", "llm-pruner", "llm-pruner-channel"):
        check_strategy(strategy_of(name), checkpoint.shape)


@pytest.mark.parametrize("entries", [
    {"layer_types": None, "_sliding_window_pattern": 3},
    {"layer_types": None, "_sliding_window_pattern": 6, "sliding_window_pattern": 3},
    {"layer_types": ["full_attention"] * 4},
    {"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
], ids=["private pattern", "two patterns", "all global", "two global first", "flat parameters"])
def test_layers_are_of_the_kinds_that_transformers_takes_them_for(
    entries: dict[str, Any], tmp_path: Path
) -> None:
    model = make_tiny(tmp_path / "m", family="gemma3_text", **ENTRIES["gemma3_text"])
    config = json.loads((model / "config.json").read_text())
    config = {name: value for name, value in {**config, **entries}.items() if value is not None}
    (model / "config.json").write_text(json.dumps(config))
    checkpoint, expected = Checkpoint(model), hf_logits(model, TOKENS)
    _close(_computed(checkpoint), expected)
    export_verified(checkpoint, None, tmp_path / "file.gguf", quant="F32", name="file")
    with GgufModel(tmp_path / "file.gguf", exact=True) as opened:
        _close(opened.logits(TOKENS), expected)
    export_verified(checkpoint, None, tmp_path / "some.gguf", quant="Q8_0", name="some")


def test_a_window_that_no_layer_has_may_be_left_out_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    shape = Checkpoint(make_tiny(tmp_path / "m", family="gemma3_text",
                                 **ENTRIES["gemma3_text"])).shape
    plain = config_of_shape(shape.replace(local_layers=(), sliding_window=0), {})
    assert plain["sliding_window"]
    assert set(plain["layer_types"]) == {"full_attention"}
    assert not shape_of_config(plain).local_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_3s_rotary_scaling_is_right_or_refused_by_name(family: str, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "m", family=family, **{
        **ENTRIES[family], "rope_theta": 1e4, "rope_scaling": {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}})
    checkpoint, expected = Checkpoint(model), hf_logits(model, TOKENS)
    assert checkpoint.shape.rope_scaling is not None
    _close(_computed(checkpoint), expected)
    if checkpoint.shape.of.takes_rope_factors:
        export_gguf(checkpoint, None, tmp_path / "file.gguf", quant="F32", name="file")
        with GgufModel(tmp_path / "file.gguf", exact=True) as opened:
            _close(opened.logits(TOKENS), expected)
    else:
        with pytest.raises(InputError, match="no 'llama3' rope scaling of a"):
            export_gguf(checkpoint, None, tmp_path / "file.gguf", quant="F32", name="file")
    export_onnx(checkpoint, None, tmp_path / "onnx", quant="onnx:fp32")
    with OnnxModel(tmp_path / "onnx") as graph:
        _close(graph.logits(TOKENS), expected)


@pytest.mark.parametrize(("family", "entries", "said"), [
    ("qwen2", {"use_sliding_window": True}, "unsupported use_sliding_window: got True"),
    ("qwen3", {"attention_bias": True}, "unsupported attention_bias: got True"),
    ("granite", {"hidden_act": "gelu"}, "unsupported hidden_act: got 'gelu'"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "unsupported final_logit_softcapping"),
    ("gemma3_text", {"query_pre_attn_scalar": 168}, "unsupported query_pre_attn_scalar: got 168"),
    ("smollm3", {"use_sliding_window": True}, "unsupported use_sliding_window: got True"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "0 or 1 for each of 4 layers"),
    ("smollm3", {"no_rope_layers": [[1], 1, 1, 0]}, "0 or 1 for each of 4 layers"),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "above zero: got 0"),
    ("smollm3", {"layer_types": ["sliding_attention"] * 4}, "unsupported layer_types"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "unsupported layer_types"),
    ("gemma3_text", {"layer_types": ["full_attention"]}, "a kind for each of 4 layers"),
    ("gemma3_text", {"layer_types": []}, "a kind for each of 4 layers"),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 0}, "above zero: got 0"),
    ("gemma3_text", {"sliding_window": None}, "sliding_window should be a number of tokens"),
    ("gemma3_text", {"sliding_window": 2 ** 40}, "less than or equal to 2147483647"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {
        "rope_type": "linear", "factor": 4.0}}}, "unsupported rope scaling of sliding_attention"),
])
def test_what_a_family_may_have_and_we_do_not_is_refused_by_name(
    family: str, entries: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = make_tiny(tmp_path / "m", family=family, **ENTRIES[family])
    config = json.loads((model / "config.json").read_text())
    with pytest.raises(InputError, match=said):
        shape_of_config({**config, **entries})
