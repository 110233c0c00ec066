"""OpenVINO, which runs on CPUs."""
