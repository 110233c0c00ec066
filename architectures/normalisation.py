"""The decoders' normalisation: the layers of `decoder_use_norm`, as in the 2D library, and what tensors show of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from smp3d_export.architectures.arguments import check_arguments
from smp3d_export.errors import UsageError, unknown

NormArgument = bool | str | Mapping[str, Any]

NORM_ARGUMENTS = frozenset(("decoder_use_norm", "decoder_use_batchnorm", "psp_use_batchnorm"))
"""Arguments that say the same thing: a user who gave one of them has decided."""
GROUPS = 8
"""The number of groups if none is given; channels that it does not divide get a divisor of it."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation that also takes groups of a single number, which PyTorch's module refuses.

    That happens if a group has one channel and the map one voxel; the output is then the bias.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance normalisation without PyTorch's refusal of maps of one voxel, which a capture could not keep.

    The networks refuse volumes with such a map: its values would be nothing but rounding errors.
    """

    def forward(self, input: Tensor) -> Tensor:
        own_statistics = self.training or not self.track_running_stats
        return torch.instance_norm(
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            own_statistics,
            self.momentum or 0.0,
            self.eps,
            torch.backends.cudnn.enabled,
        )


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each voxel of (N, C, H, W, D)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


NORMS: dict[str, type[nn.Module]] = {
    "batchnorm": nn.BatchNorm3d,
    "groupnorm": GroupNorm,
    "instancenorm": InstanceNorm,
    "layernorm": LayerNorm,
    "identity": nn.Identity,
}
# Arguments of PyTorch's layers that are not a user's to give: the channels, and where the tensors are.
OURS = {"num_features", "num_channels", "normalized_shape", "device", "dtype", "args", "kwargs"}


@dataclass(frozen=True)
class Norm:
    """What follows the convolutions of a decoder: a row of `NORMS`, and further arguments of its class."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_two_voxels(self) -> bool:
        """Whether it divides by the deviation of a channel over the map, which a single voxel does not have."""
        return self.name == "instancenorm" and not self.arguments.get("track_running_stats", False)

    def layer(self, channels: int) -> nn.Module:
        """The layer for a map with so many channels.

        Raises:
            UsageError: the channels do not divide into the groups.
        """
        if self.name == "identity":
            return nn.Identity()
        if self.name != "groupnorm":
            return NORMS[self.name](channels, **self.arguments)
        arguments = {"num_groups": gcd(GROUPS, channels), **self.arguments}
        if channels % arguments["num_groups"]:
            raise UsageError(
                f"num_groups of decoder_use_norm is {arguments['num_groups']}, but a decoder map has {channels} "
                f"channels: use a divisor of them, such as {gcd(arguments['num_groups'], channels)}"
            )
        return GroupNorm(num_channels=channels, **arguments)


BATCHNORM, IDENTITY = Norm("batchnorm"), Norm("identity")


def norm_of(norm: NormArgument, batchnorm: bool = True, flag: str = "decoder_use_batchnorm") -> Norm:
    """The normalisation that a constructor's arguments ask for.

    Args:
        norm: `decoder_use_norm`: the name of a row of `NORMS`; True or False for the first and the last; or a mapping
            with a name as `type` and further arguments of its class.
        batchnorm: the older argument. False removes batch normalisation.
        flag: the name of the older argument.

    Raises:
        UsageError: there is no such layer, it does not have the given arguments, or the two arguments contradict.
    """
    if isinstance(norm, bool):
        norm = "batchnorm" if norm else "identity"
    given = {"type": norm} if isinstance(norm, str) else norm
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise UsageError(
            f"decoder_use_norm is {norm!r}; it takes the name of a layer ({', '.join(NORMS)}), "
            'or a mapping with one of these as "type" and further arguments of the layer'
        )
    name = given["type"].lower()
    arguments = {key: value for key, value in given.items() if key != "type"}
    if name == "inplace":
        raise UsageError(
            "decoder_use_norm is 'inplace', which comes from another package whose kernels cannot be exported: "
            "use batchnorm"
        )
    if name not in NORMS:
        raise unknown("decoder_use_norm", name, NORMS, ", ".join(NORMS))
    owner = f"decoder_use_norm {name}"
    taken = [key for key in inspect.signature(NORMS[name]).parameters if key not in OURS]
    for key in arguments:
        if key not in taken:
            raise unknown(f"argument of {owner}", key, taken, ", ".join(taken) or "none")
    check_arguments(NORMS[name], arguments, owner)
    if not batchnorm and name not in ("batchnorm", "identity"):
        raise UsageError(f"decoder_use_norm is {name!r}, but {flag} is false: give one of the two")
    return Norm(name, arguments) if batchnorm else IDENTITY


def norms_shown(shapes: Mapping[str, tuple[int, ...]], block: str) -> tuple[str, ...]:
    """Which `decoder_use_norm` a checkpoint may have been trained with, as the command line takes it.

    Args:
        shapes: its tensors' shapes.
        block: the key of one of the decoder's `ConvBlock`s.

    Returns:
        Several if their tensors are the same; none if there is no such block.
    """
    if f"{block}.0.weight" not in shapes:
        return ()
    if f"{block}.1.running_mean" in shapes:
        return ("batchnorm",)
    if f"{block}.1.weight" in shapes:
        return "layernorm", "groupnorm,num_groups=N", "instancenorm,affine=true"
    return ("identity",) if f"{block}.0.bias" in shapes else ("instancenorm",)


def infer_norm(shapes: Mapping[str, tuple[int, ...]], block: str, flag: str | None) -> dict[str, Any]:
    """The constructor argument that `norms_shown` leaves no doubt about: `flag` if it can say it."""
    shown = norms_shown(shapes, block)
    if len(shown) != 1:
        return {}
    if flag is not None and shown[0] in ("batchnorm", "identity"):
        return {flag: shown[0] == "batchnorm"}
    return {"decoder_use_norm": shown[0]}
