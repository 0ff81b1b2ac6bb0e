"""Rotary position embedding: the frequencies, with the scalings that are supported. Pure, no torch.

In: a `Shape`. Out: lists of `head_dim / 2` floats.
"""

from __future__ import annotations

import math

from edgeprune.model.shape import Shape


def rope_factors(shape: Shape) -> list[float]:
    """Return what each rotary frequency is divided by, `(head_dim / 2,)`.

    Llama 3.1 divides wavelengths above `original / low_freq_factor` by `factor`, leaves those below
    `original / high_freq_factor`, and interpolates between (transformers
    `_compute_llama3_parameters`; GGUF's `rope_freqs.weight` holds the same numbers).
    """
    scaling = shape.rope_scaling
    frequencies = _unscaled(shape)
    if scaling is None:
        return [1.0] * len(frequencies)
    if scaling.rope_type == "linear":
        return [scaling.factor] * len(frequencies)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(scaling.factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return factors


def inverse_frequencies(shape: Shape, *, local: bool = False) -> list[float]:
    """Return the rotary frequencies after scaling, radians per token, `(head_dim / 2,)`.

    Args:
        shape: The shape.
        local: Of the layers that see a sliding window only, which are not scaled.
    """
    if local:
        return _unscaled(shape.replace(rope_theta=shape.rope_local_base_freq))
    return [f / s for f, s in zip(_unscaled(shape), rope_factors(shape), strict=True)]


def _unscaled(shape: Shape) -> list[float]:
    return [shape.rope_theta ** (-i / shape.head_dim) for i in range(0, shape.head_dim, 2)]
