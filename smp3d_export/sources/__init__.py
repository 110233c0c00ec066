"""What can be exported: networks by name, checkpoints, saved models, models in memory, ONNX files."""
