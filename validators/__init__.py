"""Artifact -> verdict: whether it agrees with the eager network, and how fast it is. Imports no torch."""
