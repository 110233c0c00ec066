"""Name -> model: the registry over the table of architectures. Importing it imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from smp3d_export.architectures.arguments import check_arguments
from smp3d_export.architectures.catalogue import SPECS, ArchitectureSpec
from smp3d_export.errors import unknown

if TYPE_CHECKING:
    from smp3d_export.architectures.base import SegmentationModel

__all__ = ["ARCHITECTURES", "ArchitectureSpec", "architecture_class", "architecture_spec", "create_model"]

ARCHITECTURES: Mapping[str, ArchitectureSpec] = MappingProxyType({spec.name: spec for spec in SPECS})


def architecture_spec(name: str) -> ArchitectureSpec:
    """The row of an architecture; upper and lower case do not matter.

    Raises:
        UsageError: no architecture has that name; the message suggests the nearest.
    """
    for spec in SPECS:
        if spec.name.lower() == name.lower():
            return spec
    raise unknown("architecture", name, ARCHITECTURES, "smp3d-export list architectures")


def architecture_class(name: str) -> type[SegmentationModel]:
    """The class of an architecture; upper and lower case do not matter."""
    spec = architecture_spec(name)
    return getattr(importlib.import_module(f"smp3d_export.architectures.{spec.module}"), spec.name)


def create_model(
    arch: str,
    encoder_name: str = "resnet34",
    encoder_weights: str | None = "imagenet",
    in_channels: int = 3,
    classes: int = 1,
    **kwargs: Any,
) -> SegmentationModel:
    """Build any architecture by name; `kwargs` are further arguments of its class.

    Raises:
        UsageError: there is no such architecture or encoder, or the architecture does not take an argument.
    """
    cls = architecture_class(arch)
    arguments = {
        "encoder_name": encoder_name,
        "encoder_weights": encoder_weights,
        "in_channels": in_channels,
        "classes": classes,
        **kwargs,
    }
    check_arguments(cls, arguments)
    return cls(**arguments)
