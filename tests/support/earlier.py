"""An artifact of version 0.1 for three targets; tests/data/README.md says how it was made."""

from pathlib import Path

EARLIER = Path(__file__).parents[1] / "data" / "artifact-of-0.1"
