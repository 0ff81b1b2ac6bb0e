"""Published repairs: ReplaceMe's map and FLAP's biases, against straight formulas."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, Kept
from edgeprune.pruning import forward
from edgeprune.pruning.published import biased_layers, mapped_layers
from edgeprune.pruning.statistics import measure_statistics, read_statistics
from edgeprune.pruning.surgery import write_pruned
from tests.tiny import make_tiny

TOKENS = torch.randint(0, 128, (12, 24), generator=torch.Generator().manual_seed(1))


def test_the_map_is_least_squares_from_the_ffn_to_what_the_span_makes(tiny: Path) -> None:
    checkpoint, cuts = Checkpoint(tiny), Cuts(layers=(1, 2))
    found = dict(mapped_layers(checkpoint, cuts, {}, TOKENS))
    assert sorted(found) == [0, 3]
    model = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    added: list[Tensor] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, out: added.append(out))
    with torch.inference_mode():
        states = model(TOKENS, output_hidden_states=True).hidden_states
    m = added[0].flatten(0, 1).double()
    wanted = (states[3] - states[1]).flatten(0, 1).double() + m  # the span's end less M's base
    best = torch.linalg.lstsq(m, wanted).solution
    down = checkpoint.tensor("model.layers.0.mlp.down_proj.weight").double()
    torch.testing.assert_close(found[0]["mlp.down_proj.weight"].double(), best.T @ down,
                               rtol=0.02, atol=0.01)
    same = forward.load_layer(checkpoint, 3)
    assert all(torch.equal(found[3][name], weight) for name, weight in same.items())


def test_spans_at_both_ends_leave_the_layers_between(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    assert [i for i, _ in mapped_layers(checkpoint, Cuts(layers=(0, 3)), {}, TOKENS)] == [1, 2]
    assert [i for i, _ in mapped_layers(checkpoint, Cuts(layers=(1, 3)), {}, TOKENS)] == [0, 2]


def test_biases_are_the_mean_of_what_is_gone_and_stock_transformers_loads_them(
    tmp_path: Path
) -> None:
    for own in (False, True):
        tiny = make_tiny(tmp_path / f"tiny-{own}", attention_bias=own, mlp_bias=own)
        checkpoint = Checkpoint(tiny)
        shape, cuts = checkpoint.shape, Cuts(kv_groups=1, ffn_channels=32)
        measure_statistics(checkpoint, TOKENS, tmp_path / "statistics")
        kept = dict.fromkeys(range(shape.num_hidden_layers), Kept(
            kv_heads=(1,), query_heads=(2, 3), ffn_channels=tuple(range(32, 96))))
        layers = dict(biased_layers(checkpoint, cuts, kept, tmp_path / "statistics"))
        for number, weights in layers.items():
            whole = forward.load_layer(checkpoint, number)
            means = read_statistics(tmp_path / "statistics", number)
            for name, mean, gone in (
                ("self_attn.o_proj", means.heads_mean, range(32)),
                ("mlp.down_proj", means.channels_mean, range(32)),
            ):
                expected = sum((whole[f"{name}.weight"][:, i] * mean[i] for i in gone),
                               start=whole.get(f"{name}.bias", torch.tensor(0.0)))
                torch.testing.assert_close(weights[f"{name}.bias"], expected, rtol=1e-4, atol=1e-5)
        out = tmp_path / f"out-{own}"
        write_pruned(checkpoint, cuts, iter(layers.items()), out, biased=True)
        model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
        loaded = model.model.layers[0].mlp.down_proj.bias
        assert torch.equal(loaded, layers[0]["mlp.down_proj.bias"])
