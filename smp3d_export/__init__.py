"""Export 3D segmentation networks to verified deployment artifacts. Importing this imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smp3d_export.architectures import create_model as create_model
    from smp3d_export.architectures.fpn import FPN as FPN
    from smp3d_export.architectures.linknet import Linknet as Linknet
    from smp3d_export.architectures.manet import MAnet as MAnet
    from smp3d_export.architectures.pspnet import PSPNet as PSPNet
    from smp3d_export.architectures.unet import Unet as Unet
    from smp3d_export.architectures.unetplusplus import UnetPlusPlus as UnetPlusPlus
    from smp3d_export.encoders import get_encoder as get_encoder
    from smp3d_export.encoders import get_encoder_names as get_encoder_names

__version__ = "0.1.0"

_WHERE = {
    "FPN": "smp3d_export.architectures.fpn",
    "Linknet": "smp3d_export.architectures.linknet",
    "MAnet": "smp3d_export.architectures.manet",
    "PSPNet": "smp3d_export.architectures.pspnet",
    "Unet": "smp3d_export.architectures.unet",
    "UnetPlusPlus": "smp3d_export.architectures.unetplusplus",
    "create_model": "smp3d_export.architectures",
    "get_encoder": "smp3d_export.encoders",
    "get_encoder_names": "smp3d_export.encoders",
    "encoders": "smp3d_export.encoders",
}

__all__ = [
    "FPN",
    "Linknet",
    "MAnet",
    "PSPNet",
    "Unet",
    "UnetPlusPlus",
    "create_model",
    "get_encoder",
    "get_encoder_names",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    return module if _WHERE[name].endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
