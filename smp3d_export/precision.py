"""The precisions that an artifact can compute in."""

from enum import StrEnum


class Precision(StrEnum):
    """`tf32` rounds the inputs of fp32 products to 10 bits on an NVIDIA GPU; `int8` needs calibration."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    @property
    def is_half(self) -> bool:
        """Whether values take 16 bits."""
        return self in (Precision.FP16, Precision.BF16)
