"""Kinds of machines that a demo is run on: variables of the environment, and overrides of the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
#: Environment and options of each setting.
SETTINGS: dict[str, tuple[Mapping[str, str], Sequence[str]]] = {
    "default": ({}, ()),
    "off": ({}, ("speed.kernels=off",)),
    "avx2": (AVX2, ()),
    "avx2-off": (AVX2, ("speed.kernels=off",)),
    "threads-1": ({"OMP_NUM_THREADS": "1"}, ()),
    "threads-2": ({"OMP_NUM_THREADS": "2"}, ()),
}
