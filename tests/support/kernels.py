"""In what OpenVINO computes a network, which its hints and its manifest only ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openvino


def arithmetic_of(model: openvino.CompiledModel, manifest: Mapping[str, Any]) -> set[str]:
    """In what the convolutions of a compiled model are computed, by the names of their kernels: f32, bf16, i8.

    Those that this processor computes wrongly, which are kept in f32, are left out.

    The execution graph has a `runtimePrecision` too, but says f16 there of a f32 kernel that is given f16 weights.
    """
    infos = [operation.get_rt_info() for operation in model.get_runtime_model().get_ops()]
    kept = set(manifest.get("kept_fp32", ()))
    return {
        info["primitiveType"].astype(str).rpartition("_")[2].lower()
        for info in infos
        if info["layerType"].astype(str) in ("Convolution", "Deconvolution")
        and not kept.intersection(info["originalLayersNames"].astype(str).split(","))
    }
