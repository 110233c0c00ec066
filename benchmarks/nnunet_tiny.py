"""A real nnU-Net, trained for one epoch on generated volumes, and the reader of its results compared with nnU-Net.

    python benchmarks/nnunet_tiny.py WORK                     train, then compare the folds on a random patch
    python benchmarks/nnunet_tiny.py WORK --fixture FOLDER    also copy what the reader needs of the results

Run by hand: it needs `nnunetv2`, and takes a few minutes on one CPU core. Its plans are made by nnU-Net and then
narrowed, so that a checkpoint is small enough to be a test's data.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smp3d_export.sources import nnunet
from smp3d_export.sources.ensemble import Average

NUMBER, NAME = 901, "Dataset901_Tiny"
TRAINER = "nnUNetTrainer_1epoch"
PLANNERS = {"nnUNetPlans": "ExperimentPlanner", "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM"}
FOLDS = {"nnUNetPlans": (0, 1), "nnUNetResEncUNetMPlans": (0,)}
CASES, SHAPE, SPACING = 6, (32, 36, 40), (1.5, 1.0, 1.0)
"""Volumes as NIfTI stores them, x first. nnU-Net puts the axis with the coarsest spacing first, so it transposes."""
LABELS = {"background": 0, "organ": 1, "lesion": 2}
PATCH = (16, 20, 24)
HALF = 2e-3
KEPT = ("plans.json", "dataset.json")
FEATURES = [4, 8, 12]
NARROW: dict[str, Any] = {
    "n_stages": len(FEATURES),
    "features_per_stage": FEATURES,
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage_decoder": [1, 1],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="where nnU-Net's three folders go")
    parser.add_argument("--fixture", type=Path, help="where to copy plans, dataset and checkpoints")
    options = parser.parse_args()
    work = options.work.resolve()
    results = train(work)
    agree = [compare(folder) for folder in sorted(results.iterdir()) if "__" in folder.name]
    if options.fixture is not None:
        keep(results, options.fixture / NAME)
    sys.exit(0 if all(agree) else 1)


def train(work: Path) -> Path:
    """Plan, preprocess and train. Returns the data set's folder of results."""
    folders = {f"nnUNet_{part}": str(work / part) for part in ("raw", "preprocessed", "results")}
    limits = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    os.environ.update(folders | limits)
    write_dataset(work / "raw" / NAME)
    number = str(NUMBER)
    command("experiment_planning.plan_and_preprocess_entrypoints:extract_fingerprint_entry", "-d", number, "-np", "1")
    for plans, planner in PLANNERS.items():
        entries = "experiment_planning.plan_and_preprocess_entrypoints"
        command(f"{entries}:plan_experiment_entry", "-d", number, "-pl", planner)
        narrow(work / "preprocessed" / NAME / f"{plans}.json")
        command(f"{entries}:preprocess_entry", "-d", number, "-plans_name", plans, "-c", "3d_fullres", "-np", "1")
        for fold in FOLDS[plans]:
            where = ("-tr", TRAINER, "-p", plans, "-device", "cpu")
            command("run.run_training:run_training_entry", number, "3d_fullres", str(fold), *where)
    return work / "results" / NAME


def command(entry: str, *arguments: str) -> None:
    """Run one of nnU-Net's commands, `module:function` below `nnunetv2`, in a process of its own."""
    module, function = entry.split(":")
    code = f"from nnunetv2.{module} import {function}; {function}()"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def write_dataset(folder: Path) -> None:
    """Volumes of noise with two blobs in each, which the second channel shows less clearly."""
    import nibabel

    generator = np.random.default_rng(0)
    affine = np.diag((*SPACING, 1.0))
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for case in range(CASES):
        segmentation = np.zeros(SHAPE, np.uint8)
        for label, radius in ((1, 9), (2, 4)):
            segmentation[blob(generator, radius)] = label
        for channel, contrast in enumerate((400.0, 40.0)):
            image = contrast * segmentation + generator.normal(0, 50, SHAPE)
            path = folder / "imagesTr" / f"case_{case:03d}_{channel:04d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), path)  # pyright: ignore[reportPrivateImportUsage]
        path = folder / "labelsTr" / f"case_{case:03d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(segmentation, affine), path)  # pyright: ignore[reportPrivateImportUsage]
    description = {
        "channel_names": {"0": "CT", "1": "MR"},
        "labels": LABELS,
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=4), encoding="utf-8")


def blob(generator: np.random.Generator, radius: int) -> NDArray[np.bool_]:
    """Where a ball of a radius in voxels lies, at a random place within the volume."""
    centre = [generator.integers(radius, size - radius) for size in SHAPE]
    grid = np.ogrid[tuple(slice(size) for size in SHAPE)]
    return np.asarray(sum((axis - at) ** 2 for axis, at in zip(grid, centre, strict=True)) <= radius**2)


def narrow(path: Path) -> None:
    """Make the planned network small, and its patch."""
    plans = json.loads(path.read_text(encoding="utf-8"))
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = list(PATCH)
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments.update(NARROW)
    per_stage = "n_conv_per_stage" if "n_conv_per_stage" in arguments else "n_blocks_per_stage"
    arguments[per_stage] = [1] * len(FEATURES)
    path.write_text(json.dumps(plans, indent=4), encoding="utf-8")


def compare(folder: Path) -> bool:
    """Whether the networks of a folder, as read here, compute the same as nnU-Net's own."""
    inference = importlib.import_module("nnunetv2.inference.predict_from_raw_data")
    plain = {"use_gaussian": False, "use_mirroring": False}
    predictor = inference.nnUNetPredictor(**plain, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), None)
    trained = nnunet.read(folder)
    patch = torch.randn(1, trained.in_channels, *trained.patch_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = predictor.predict_logits_from_preprocessed_data(patch[0])
        ours = Average(trained.networks)(patch)[0]
    error = float((whole - ours).abs().max() / ours.abs().max())
    agree = error < HALF  # nnU-Net adds the logits of patches in half precision
    print(f"{folder.name}: {trained.name}, {trained.weights}: error of the mean {error:.1e} of {HALF:.1e}")
    for fold, network, parameters in zip(
        trained.facts["folds"], trained.networks, predictor.list_of_parameters, strict=True
    ):
        predictor.network.load_state_dict(parameters)
        with torch.inference_mode():
            same = torch.equal(predictor.network.eval()(patch), network(patch))
        print(f"{folder.name}: fold {fold}: {'the same' if same else 'DIFFERENT'}")
        agree = agree and same
    return agree


def keep(results: Path, fixture: Path) -> None:
    """Copy what the reader needs."""
    for source in sorted(results.rglob("*")):
        if source.name in KEPT or source.name == "checkpoint_final.pth":
            target = fixture / source.relative_to(results)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


if __name__ == "__main__":
    main()
