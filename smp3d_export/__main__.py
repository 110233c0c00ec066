"""`python -m smp3d_export` is the console script."""

from smp3d_export.cli import main

main()
