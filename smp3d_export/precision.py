"""The precisions that an artifact can compute in."""

from __future__ import annotations

from enum import StrEnum

from smp3d_export.errors import unknown


class Precision(StrEnum):
    """`tf32` rounds the inputs of fp32 products to 10 bits on an NVIDIA GPU; `int8` needs calibration."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    @classmethod
    def named(cls, name: str) -> Precision:
        """A precision by its name.

        Raises:
            UsageError: there is no such precision.
        """
        if name not in list(cls):
            raise unknown("precision", name, cls, ", ".join(cls))
        return cls(name)

    @property
    def is_half(self) -> bool:
        """Whether values take 16 bits."""
        return self in (Precision.FP16, Precision.BF16)
