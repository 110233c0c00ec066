"""Export 3D segmentation networks to verified deployment artifacts. Importing this imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smp3d_export.api import bench as bench
    from smp3d_export.api import export as export
    from smp3d_export.api import verify as verify
    from smp3d_export.architectures import create_model as create_model
    from smp3d_export.architectures.deeplabv3 import DeepLabV3 as DeepLabV3
    from smp3d_export.architectures.deeplabv3 import DeepLabV3Plus as DeepLabV3Plus
    from smp3d_export.architectures.fpn import FPN as FPN
    from smp3d_export.architectures.linknet import Linknet as Linknet
    from smp3d_export.architectures.manet import MAnet as MAnet
    from smp3d_export.architectures.pan import PAN as PAN
    from smp3d_export.architectures.persistence import from_pretrained as from_pretrained
    from smp3d_export.architectures.pspnet import PSPNet as PSPNet
    from smp3d_export.architectures.segformer import Segformer as Segformer
    from smp3d_export.architectures.unet import Unet as Unet
    from smp3d_export.architectures.unetplusplus import UnetPlusPlus as UnetPlusPlus
    from smp3d_export.architectures.upernet import UPerNet as UPerNet
    from smp3d_export.contract import ShapeContract as ShapeContract
    from smp3d_export.encoders import get_encoder as get_encoder
    from smp3d_export.encoders import get_encoder_names as get_encoder_names
    from smp3d_export.encoders import get_preprocessing_fn as get_preprocessing_fn
    from smp3d_export.encoders import get_preprocessing_params as get_preprocessing_params
    from smp3d_export.encoders.published import convert_2d_weights_to_3d as convert_2d_weights_to_3d
    from smp3d_export.runtime import load as load

__version__ = "0.1.0"

_WHERE = {
    "DeepLabV3": "smp3d_export.architectures.deeplabv3",
    "DeepLabV3Plus": "smp3d_export.architectures.deeplabv3",
    "FPN": "smp3d_export.architectures.fpn",
    "Linknet": "smp3d_export.architectures.linknet",
    "MAnet": "smp3d_export.architectures.manet",
    "PAN": "smp3d_export.architectures.pan",
    "PSPNet": "smp3d_export.architectures.pspnet",
    "Segformer": "smp3d_export.architectures.segformer",
    "UPerNet": "smp3d_export.architectures.upernet",
    "Unet": "smp3d_export.architectures.unet",
    "UnetPlusPlus": "smp3d_export.architectures.unetplusplus",
    "ShapeContract": "smp3d_export.contract",
    "bench": "smp3d_export.api",
    "convert_2d_weights_to_3d": "smp3d_export.encoders.published",
    "create_model": "smp3d_export.architectures",
    "from_pretrained": "smp3d_export.architectures.persistence",
    "get_encoder": "smp3d_export.encoders",
    "get_encoder_names": "smp3d_export.encoders",
    "get_preprocessing_fn": "smp3d_export.encoders",
    "get_preprocessing_params": "smp3d_export.encoders",
    "encoders": "smp3d_export.encoders",
    "export": "smp3d_export.api",
    "load": "smp3d_export.runtime",
    "verify": "smp3d_export.api",
}

__all__ = [
    "FPN",
    "PAN",
    "DeepLabV3",
    "DeepLabV3Plus",
    "Linknet",
    "MAnet",
    "PSPNet",
    "Segformer",
    "ShapeContract",
    "UPerNet",
    "Unet",
    "UnetPlusPlus",
    "bench",
    "convert_2d_weights_to_3d",
    "create_model",
    "export",
    "from_pretrained",
    "get_encoder",
    "get_encoder_names",
    "get_preprocessing_fn",
    "get_preprocessing_params",
    "load",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    return module if _WHERE[name].endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
