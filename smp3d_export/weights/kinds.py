"""A path that was given as a checkpoint and is something else: what it is, and what to do. Nothing is loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".tar")
SHOWN = 3

CUT = "is cut short, damaged or still being written"
VOLUME = "is a volume, not a checkpoint. Volumes go to --sample"
IMAGE = "is an image, not a checkpoint. Volumes go to --sample, as .npy, .npz or NIfTI"
COMPRESSED = "is a compressed file: unpack it first"
PAGE = "is a web page, not a checkpoint: download the file itself"
SAVE = "torch.save(model.state_dict(), 'weights.pth')"
OTHER_RUNTIME = f"is a model of another runtime, and a checkpoint of PyTorch is needed: {SAVE}"
ONNX = (
    "is an ONNX model, and a checkpoint of PyTorch is needed. "
    "If smp3d-export wrote it, smp3d-export from FILE.onnx makes further artifacts"
)
EXPORTED = (
    "is a program that torch.export saved, and its weights are needed: "
    "torch.save(torch.export.load({path!r}).state_dict, 'weights.pth')"
)

# By how the name ends.
NAMES = {
    (".nii", ".nii.gz", ".npy", ".npz"): VOLUME,
    (".dcm", ".dicom", ".mha", ".mhd", ".nrrd", ".nhdr", ".mgh", ".mgz", ".img", ".hdr", ".tif", ".tiff"): IMAGE,
    (".onnx",): ONNX,
    (".engine", ".plan", ".xml", ".h5", ".hdf5", ".keras", ".tflite"): OTHER_RUNTIME,
}
# By how the file begins, in lower case.
STARTS = {
    b"\x93numpy": VOLUME,
    b"\x89hdf": OTHER_RUNTIME,
    b"\x1f\x8b": COMPRESSED,
    b"bzh": COMPRESSED,
    b"\xfd7zxz": COMPRESSED,
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: fetch that with git lfs pull",
    b"<!doctype html": PAGE,
    b"<html": PAGE,
}
# By a part of the name of a file in a zip archive.
MEMBERS = {
    "/constants.pkl": (
        "is a TorchScript program, and its weights are needed: "
        "torch.save(torch.jit.load({path!r}).state_dict(), 'weights.pth')"
    ),
    "data/aotinductor/": f"is a compiled program (AOTInductor), and a checkpoint of PyTorch is needed: {SAVE}",
    "/archive_format": EXPORTED,
    "serialized_exported_program.json": EXPORTED,
    "/.data/extern_modules": f"is a package of torch.package, and a checkpoint is needed: {SAVE}",
    ".npy": VOLUME,
}
PICKLE = b"\x80"
ZIP = b"PK\x03\x04"


def other_kind(path: Path) -> str | None:
    """What a path is if it is not a checkpoint, and what to do: a text that follows its name. None if it may be one.

    Raises:
        OSError: the file cannot be read.
    """
    if path.is_dir():
        return folder_kind(path)
    for endings, kind in NAMES.items():
        if path.name.lower().endswith(endings):
            return kind
    with path.open("rb") as file:
        start = file.read(132).lower()
    if not start:
        return "is empty: writing it failed, or has only begun"
    if start.startswith(ZIP.lower()):
        return archive_kind(path)
    if start[128:] == b"dicm":
        return IMAGE
    for begin, kind in STARTS.items():
        if start.startswith(begin):
            return kind
    return None if start.startswith(PICKLE) or is_safetensors(path) else "is not a checkpoint of PyTorch"


def is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a header and the header, as those of safetensors do, or has the name."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or start[6:] == b"\0\0{"


def archive_kind(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # the last two: damaged names and versions
        return CUT
    for part, kind in MEMBERS.items():
        if any(part in member for member in members):
            return kind.format(path=str(path))
    return None if any(member.endswith("/data.pkl") for member in members) else "is a zip archive, not a checkpoint"


def folder_kind(path: Path) -> str:
    """What a folder is: a saved model, a checkpoint in parts, or any other."""
    names = sorted(entry.name for entry in path.iterdir())
    if {"config.json", "model.safetensors"} <= set(names):
        return f"is the folder of a saved model: smp3d-export from {path}"
    if ".metadata" in names:
        return (
            "is a distributed checkpoint. This makes a file of it: torch.distributed.checkpoint.format_utils."
            f"dcp_to_torch_save({str(path)!r}, 'weights.pth')"
        )
    if "zero_to_fp32.py" in names:
        return "is a checkpoint of DeepSpeed. The script zero_to_fp32.py in it makes a file of it"
    files = [name for name in names if name.lower().endswith(CHECKPOINTS)]
    if files:
        more = " and others" if len(files) > SHOWN else ""
        return f"is a folder. It holds {', '.join(files[:SHOWN])}{more}: give the path of a file"
    return "is a folder, and a checkpoint is a file. Volumes go to --sample, one file each"
