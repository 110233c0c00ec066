"""Captured programs: capture, graph, lowering, memory format."""
