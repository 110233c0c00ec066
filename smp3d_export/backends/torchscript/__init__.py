"""TorchScript, for LibTorch in C++ and for PyTorch without the network's code."""
