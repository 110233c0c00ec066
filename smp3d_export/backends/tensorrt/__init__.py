"""TensorRT and TensorRT-RTX, which run on NVIDIA GPUs."""
