"""What nnU-Net v2 trained -> its networks, one for each fold, and what a user of them has to know about volumes.

A result is a folder `Trainer__Plans__configuration` with `plans.json`, `dataset.json` and `fold_0/checkpoint_final.pth`
and so on. It may be given itself, as the data set's folder with one or more of them, or as the zip file that
`nnUNetv2_export_model_to_zip` makes of a data set. No code is run from it, and no class is imported by a name in it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.errors import CheckpointError, UsageError
from smp3d_export.sources.foreign import Foreign, Given
from smp3d_export.sources.nnunet_folder import (
    DATASET,
    FINAL,
    PLANS,
    Fold,
    chosen,
    fold_of,
    opened,
    read_fold,
    read_json,
    results_in,
    shown,
    wanted,
)
from smp3d_export.sources.nnunet_plans import Configuration, reading

if TYPE_CHECKING:
    from torch import nn

# What the manifest repeats, under nnU-Net's own names.
FACTS_OF_PLANS = ("dataset_name", "plans_name", "transpose_forward", "transpose_backward", "image_reader_writer")
RESAMPLING = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
FACTS_OF_CONFIGURATION = (
    "spacing",
    "patch_size",
    "normalization_schemes",
    "use_mask_for_norm",
    "preprocessor_name",
    "previous_stage",
    *RESAMPLING,
    *(f"{name}_kwargs" for name in RESAMPLING),
)
# The trainers of nnU-Net that build the network of the plans differ in these. Any other may change it in code.
TRAINER = re.compile(
    r"nnUNetTrainer(_?(\d+ep(ochs?)?|DA5|NoDA|(DASeg|Seg|DA)?[oO]rd0|noDummy2DDA|NoMirroring|onlyMirror01|warmup|CosAnneal"
    r"|(Vanilla)?Ada[mn](\den\d)?|(Dice|CE|Top[kK]10)+Loss(LS01|_noSmooth)?|NoDeepSupervision|BN"
    r"|probabilisticOversampling(_\d+)?))*"
)


@dataclass(frozen=True)
class Trained:
    """What nnU-Net trained for one configuration.

    Attributes:
        name: the class of the network.
        title: a default name for what is made of it, of the data set and the configuration.
        networks: one for each fold, in eval mode: (N, in_channels, H, W, D) to logits (N, classes, H, W, D). H, W and
            D are nnU-Net's first, second and third axis, after `transpose_forward`.
        patch_size: (H, W, D) in voxels.
        in_channels: image channels, and in the second stage of a cascade the first stage's labels, one-hot.
        classes: labels, or regions if the labels overlap.
        weights: where the weights are from, in words.
        notes: what a user should know about how the networks were built.
        facts: what plans, data set and checkpoint say, as JSON values, mostly under nnU-Net's own names.
    """

    name: str
    title: str
    networks: tuple[nn.Module, ...]
    patch_size: tuple[int, int, int]
    in_channels: int
    classes: int
    weights: str
    notes: tuple[str, ...]
    facts: dict[str, Any]


def is_results(path: Path) -> bool:
    """Whether a folder or a zip file holds results of nnU-Net. Its files are not opened."""
    if not path.is_dir() and not zipfile.is_zipfile(path):
        return False
    try:
        with opened(path) as root:
            return fold_of(path) is not None or bool(results_in(root))
    except UsageError:
        return False


def read(
    path: Path,
    *,
    folds: Sequence[str | int] | None = None,
    configuration: str | None = None,
    checkpoint_name: str = FINAL,
) -> Trained:
    """Read the networks of one configuration.

    Args:
        path: a folder or a zip file, see above. The folder of one fold is also taken.
        folds: numbers, or `all` for the network that was trained on all cases; by default every number that has the
            checkpoint, as in nnU-Net, or else `all`.
        configuration: which, if there are several: `3d_fullres`, or the name of its folder.
        checkpoint_name: the file in the folder of each fold.

    Raises:
        UsageError: there is no such configuration or fold, it is 2D, it is of nnU-Net v1, or
            `dynamic_network_architectures` is not installed.
        CheckpointError: a file is missing or damaged, holds code, or does not fit the others.
    """
    if (fold := fold_of(path)) is not None:
        path, folds = path.resolve().parent, folds or [fold]
    with opened(path) as root:
        folder = chosen(results_in(root), path, configuration)
        title = shown(folder)
        if not (folder / PLANS).is_file():
            raise UsageError(f"{title!r} is a result of nnU-Net v1, and only those of nnU-Net v2 are read")
        plans, dataset = read_json(folder / PLANS), read_json(folder / DATASET)
        checkpoints = [read_fold(folder, fold, checkpoint_name) for fold in wanted(folder, folds, checkpoint_name)]
    first = checkpoints[0]
    with naming(title):
        found = Configuration.of(plans, dataset, first.configuration)
        with reading(PLANS):
            facts = facts_of(plans, dataset, found, checkpoints, checkpoint_name)
            height, width, depth = found.patch_size
        networks, notes = built(found, checkpoints)
    names = ", ".join(each.name for each in checkpoints)
    several = "s" if len(checkpoints) > 1 else ""
    return Trained(
        name=found.network,
        title=slug(f"{plans.get('dataset_name', folder.name)}-{found.name}"),
        networks=networks,
        patch_size=(height, width, depth),
        in_channels=found.in_channels,
        classes=found.labels.heads,
        weights=f"fold{several} {names}, {checkpoint_name}",
        notes=notes,
        facts=facts,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Results(Foreign):
    """Results of nnU-Net as the source of an export. Several folds become one network, which averages them.

    Attributes:
        path, folds, configuration, checkpoint_name: see `read`.
        name: what the network is called; by default after the data set and the configuration.
    """

    path: Path
    folds: tuple[str, ...] | None = None
    configuration: str | None = None
    checkpoint_name: str = FINAL
    name: str | None = None

    @cached_property
    def trained(self) -> Trained:
        return read(self.path, folds=self.folds, configuration=self.configuration, checkpoint_name=self.checkpoint_name)

    @property
    def title(self) -> str:
        return self.name or self.trained.title

    def load(self) -> Given:
        from smp3d_export.sources.ensemble import Average

        found = self.trained
        module = found.networks[0] if len(found.networks) == 1 else Average(found.networks)
        return Given(
            module=module,
            name=self.title,
            weights=f"{found.name}, {found.weights}",
            shape=(1, found.in_channels, *found.patch_size),
            notes=found.notes,
            arguments={"classes": found.classes},
            facts={"nnunet": found.facts},
        )


@contextmanager
def naming(title: str) -> Iterator[None]:
    """Put the name of the folder before errors that name one of its files."""
    try:
        yield
    except UsageError as error:
        raise type(error)(f"{title!r}: {error}") from error


def facts_of(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: Configuration,
    folds: Sequence[Fold],
    checkpoint_name: str,
) -> dict[str, Any]:
    """What the manifest repeats: labels, and what was done to volumes before and after the network."""
    labels, first = configuration.labels, folds[0]
    intensities = "foreground_intensity_properties"
    return {
        "trainer_name": first.trainer,
        "configuration": configuration.name,
        "folds": [fold.name for fold in folds],
        "checkpoint": checkpoint_name,
        **{name: plans.get(name) for name in FACTS_OF_PLANS},
        **{name: configuration.content.get(name) for name in FACTS_OF_CONFIGURATION},
        f"{intensities}_per_channel": plans.get(f"{intensities}_per_channel", plans.get(f"{intensities}_by_modality")),
        "channel_names": dict(configuration.channel_names),
        "labels": dict(labels.values),
        "ignore_label": labels.ignore,
        "regions": None
        if labels.regions is None
        else [{"name": name, "labels": values} for name, values in labels.regions.items()],
        "regions_class_order": dataset.get("regions_class_order"),
        "inference_allowed_mirroring_axes": first.mirroring_axes,
        "file_ending": dataset.get("file_ending"),
    }


def built(configuration: Configuration, folds: Sequence[Fold]) -> tuple[tuple[nn.Module, ...], tuple[str, ...]]:
    """A network with the weights of each fold, and what a user should know.

    Raises:
        CheckpointError: a checkpoint does not fit the network of the plans, or is not finite.
    """
    outline = configuration.build()
    # The trainer nnUNetTrainerBN, and those derived from it, replace the normalisation of the plans in code.
    running = any(name.endswith(".running_mean") for name in folds[0].weights)
    batch_norm = running and not any(name.endswith(".running_mean") for name in outline.state_dict())
    notes = ["batch norm in place of the plans' normalisation, because the checkpoint has it"] if batch_norm else []
    if not TRAINER.fullmatch(folds[0].trainer):
        notes.append(
            f"the trainer {folds[0].trainer} is not one of nnU-Net's: the network is built from the plans, without "
            "what this trainer may change in code"
        )
    networks = []
    for fold in folds:
        network = configuration.build(batch_norm=batch_norm)
        load(network, fold, configuration)
        networks.append(network)
    return tuple(networks), tuple(notes)


def load(network: nn.Module, fold: Fold, configuration: Configuration) -> None:
    """Give a network the weights of a fold, in float32.

    Raises:
        CheckpointError: they do not fit, or are not finite.
    """
    from torch import Tensor

    from smp3d_export.weights.tensors import differences, usable

    own = network.state_dict()
    found = {name: value for name, value in fold.weights.items() if isinstance(value, Tensor)}
    lines = differences(
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        {name: tuple(tensor.shape) for name, tensor in found.items()},
    )
    if lines:
        differing = [line.strip() for line in lines]
        raise CheckpointError(
            f"{fold.title} does not fit the {configuration.network} of the plans; {'; '.join(differing)}. "
            f"If its trainer {fold.trainer} builds another network, build it in Python, and pass the module to "
            "smp3d_export.export"
        )
    state = {name: usable(found[name], tensor.dtype, f"{name} of {fold.title}") for name, tensor in own.items()}
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False)


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-").lower()
