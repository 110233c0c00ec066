"""The plans of nnU-Net v2 -> one configuration: its network, its channels and labels. No name in them is imported.

There are two generations of plans. The present one names the network's class and its arguments under `architecture`;
up to nnU-Net 2.2 a configuration has a table of a U-Net's sizes, from which the same arguments follow.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from smp3d_export.errors import CheckpointError, Smp3dExportError, UsageError, summary

if TYPE_CHECKING:
    from torch import nn

PACKAGE = "dynamic_network_architectures"
NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
BLOCKS = ("BasicBlockD", "BottleneckD")
LAYER = re.compile(r"torch\.nn\.(?:modules\.\w+\.)?([A-Z]\w*)")
EARLIER = ("PlainConvUNet", "ResidualEncoderUNet")
"""The networks that plans of the earlier generation may ask for."""
VOLUME_AXES = 3


@contextmanager
def reading(title: str) -> Iterator[None]:
    """Errors while the content of a file is interpreted become one line that names the file."""
    try:
        yield
    except Smp3dExportError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{title} has no {error}: give the file that nnU-Net v2 wrote") from error
    except (TypeError, ValueError, AttributeError, IndexError, AssertionError, RuntimeError) as error:
        raise CheckpointError(f"{title} is not as nnU-Net v2 writes it ({summary(error)})") from error


@dataclass(frozen=True)
class Labels:
    """The labels of a data set, by name, in the order of `dataset.json`.

    A value is a label, or a list of labels. If any list has more than one, the network predicts regions that may
    overlap, one head each, with a sigmoid; otherwise one head for each label.
    """

    values: Mapping[str, int | list[int]]

    @classmethod
    def of(cls, dataset: Mapping[str, Any]) -> Labels:
        """The labels in the content of `dataset.json`."""
        values = {
            name: [int(label) for label in value] if isinstance(value, list) else int(value)
            for name, value in dataset["labels"].items()
        }
        if values["background"] != 0:
            raise ValueError(f"the label background is {values['background']}, not 0")
        return cls(values)

    @property
    def ignore(self) -> int | None:
        """The label of voxels that training ignored. It has no head."""
        value = self.values.get("ignore")
        return value if isinstance(value, int) else None

    @cached_property
    def all(self) -> tuple[int, ...]:
        """Every label but the ignored one, ascending."""
        lists = [
            value if isinstance(value, list) else [value] for name, value in self.values.items() if name != "ignore"
        ]
        return tuple(sorted({label for labels in lists for label in labels}))

    @cached_property
    def regions(self) -> dict[str, list[int]] | None:
        """The regions by name, in the order of the heads. None if the heads are labels."""
        if not any(isinstance(value, list) and len(value) > 1 for value in self.values.values()):
            return None
        lists = {name: value if isinstance(value, list) else [value] for name, value in self.values.items()}
        return {name: labels for name, labels in lists.items() if name != "ignore" and set(labels) != {0}}

    @property
    def foreground(self) -> tuple[int, ...]:
        return tuple(label for label in self.all if label != 0)

    @property
    def heads(self) -> int:
        """How many channels the network's output has."""
        return len(self.all if self.regions is None else self.regions)


@dataclass(frozen=True)
class Configuration:
    """One configuration of plans, such as `3d_fullres`, with what it inherits.

    Attributes:
        content: its entries in `plans.json`.
        channel_names: the names of the input channels by number, as text.
    """

    name: str
    content: Mapping[str, Any]
    labels: Labels
    channel_names: Mapping[str, str]

    @classmethod
    def of(cls, plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str) -> Configuration:
        """A configuration from the content of `plans.json` and `dataset.json`.

        Raises:
            CheckpointError: there is none of this name, or its parents are missing or go round in a circle.
            UsageError: it is a 2D configuration.
        """
        with reading("dataset.json"):
            labels = Labels.of(dataset)
            channels = dataset["modality"] if "modality" in dataset else dataset["channel_names"]
            channel_names = {str(number): str(title) for number, title in channels.items()}
        with reading("plans.json"):
            found = cls(name, inherited(plans["configurations"], name), labels, channel_names)
            if len(found.patch_size) != VOLUME_AXES:
                raise UsageError(
                    f"the configuration {name} is {len(found.patch_size)}D, and smp3d-export exports 3D networks: "
                    "choose a 3D one with --configuration, such as 3d_fullres"
                )
        return found

    @property
    def patch_size(self) -> tuple[int, ...]:
        """In voxels, in nnU-Net's order of axes."""
        return tuple(int(size) for size in self.content["patch_size"])

    @property
    def in_channels(self) -> int:
        """Image channels; the second stage of a cascade also gets the first stage's segmentation, one-hot."""
        previous = self.content.get("previous_stage") is not None
        return len(self.channel_names) + (len(self.labels.foreground) if previous else 0)

    @property
    def network(self) -> str:
        """The name of the network's class, without its module."""
        return self.architecture["network_class_name"].rpartition(".")[2]

    @property
    def architecture(self) -> Mapping[str, Any]:
        """The class and arguments of the network, as plans of the present generation have them."""
        content = self.content
        return content["architecture"] if "architecture" in content else earlier_architecture(content)

    def build(self, *, batch_norm: bool = False) -> nn.Module:
        """The network on the device `meta`, without deep supervision.

        Args:
            batch_norm: whether batch norm replaces the plans' normalisation, which `nnUNetTrainerBN` does in code.

        Raises:
            CheckpointError: the plans ask for another kind of network, or for layers that are not PyTorch's.
            UsageError: `dynamic_network_architectures` is not installed.
        """
        import torch
        from torch import nn

        with reading("plans.json"):
            wanted = str(self.architecture["network_class_name"])
            arguments = dict(self.architecture["arch_kwargs"])
            by_name = [key for key in self.architecture["_kw_requires_import"] if arguments[key] is not None]
            if not wanted.startswith(f"{PACKAGE}.") or self.network not in NETWORKS:
                raise CheckpointError(
                    f"plans.json asks for the network {wanted}, and only {', '.join(NETWORKS)} are built from plans: "
                    "build it in Python, and pass the module to smp3d_export.export"
                )
            cls = getattr(package("architectures.unet"), self.network, None)
            if cls is None:
                raise UsageError(f"{PACKAGE} is too old for {self.network}: pip install -U {PACKAGE.replace('_', '-')}")
            arguments |= {key: layer(key, arguments[key]) for key in by_name}
            if batch_norm:
                arguments |= {"norm_op": nn.BatchNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
            arguments |= {"input_channels": self.in_channels, "num_classes": self.labels.heads}
            with torch.device("meta"):
                return cls(**arguments, deep_supervision=False).eval()


def inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries of a configuration over those of its parents."""
    line: list[str] = []
    parent: str | None = name
    while parent is not None:
        if parent in line:
            raise CheckpointError(f"plans.json: {' inherits from '.join([*line, parent])}, which is a circle")
        if parent not in configurations:
            raise CheckpointError(f"plans.json has no configuration {parent!r}. It has {', '.join(configurations)}")
        line.append(parent)
        parent = configurations[parent].get("inherits_from")
    return {key: value for each in reversed(line) for key, value in configurations[each].items()}


def earlier_architecture(content: Mapping[str, Any]) -> dict[str, Any]:
    """The class and arguments of a network from a configuration of the earlier generation."""
    name = content["UNet_class_name"]
    if name not in EARLIER:
        raise CheckpointError(f"plans.json asks for the network {name}, and only {' and '.join(EARLIER)} are known")
    stages = len(content["n_conv_per_stage_encoder"])
    first, most = content["UNet_base_num_features"], content["unet_max_num_features"]
    per_stage = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"{PACKAGE}.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(first * 2**stage, most) for stage in range(stages)],
            "conv_op": "torch.nn.Conv3d",
            "kernel_sizes": content["conv_kernel_sizes"],
            "strides": content["pool_op_kernel_sizes"],
            per_stage: content["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": content["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": "torch.nn.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ("conv_op", "norm_op", "nonlin"),
    }


def layer(argument: str, name: Any) -> type[nn.Module]:
    """The class of a layer or block by its name in plans, if it is PyTorch's or one of `BLOCKS`.

    Raises:
        CheckpointError: it is anything else. A file of plans must not choose what is imported.
    """
    from torch import nn

    found = None
    if match := LAYER.fullmatch(str(name)):
        found = getattr(nn, match[1], None)
    elif str(name).startswith(f"{PACKAGE}.") and str(name).rpartition(".")[2] in BLOCKS:
        found = getattr(package("building_blocks.residual"), str(name).rpartition(".")[2])
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    raise CheckpointError(
        f"plans.json gives {argument} as {name!r}, and only layers of torch.nn and {' and '.join(BLOCKS)} of "
        f"{PACKAGE} are used"
    )


def package(module: str) -> ModuleType:
    """A module of `dynamic_network_architectures`.

    Raises:
        UsageError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(f"{PACKAGE}.{module}")
    except ImportError as error:
        raise UsageError(
            f"a network of nnU-Net needs {PACKAGE}, which cannot be imported ({error}): "
            "pip install 'smp3d-export[nnunet]'"
        ) from error
