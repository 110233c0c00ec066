"""A small encoder of each family, uneven strides, and a check that weights are drawn once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from smp3d_export.encoders import ENCODERS

# The smallest encoder of each family.
FAMILIES: dict[str, str] = {}
for _spec in sorted(ENCODERS.values(), key=lambda spec: spec.parameters):
    FAMILIES.setdefault(_spec.family, _spec.name)

STRIDES = {
    "uneven": ((2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 1), (1, 1, 2)),
    "with-3": ((1, 2, 3), (2, 2, 1), (3, 1, 1), (1, 2, 2), (2, 1, 1)),
    "with-4": ((4, 2, 1), (1, 1, 1), (1, 3, 2), (2, 1, 2), (1, 2, 1)),
}


def draws_each_weight_once(build: Callable[[], nn.Module]) -> bool:
    """Whether each weight is drawn exactly once: drawing weights only to discard them doubles time and memory."""
    drawn: Counter[int] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.normal_, torch.ops.aten.uniform_):
                drawn[args[0].data_ptr()] += 1
            return func(*args, **(kwargs or {}))

    with Count():
        module = build()
    # A discarded tensor's address belongs to no parameter, or to one that was drawn a second time.
    weights = {p.data_ptr() for p in module.parameters() if p.ndim > 1}
    addresses = {p.data_ptr() for p in module.parameters()}
    return drawn.keys() <= addresses and set(drawn.values()) == {1} and weights <= drawn.keys()
