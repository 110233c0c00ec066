"""`python -m smp3d_export` is the console script."""

from smp3d_export.cli.main import main

main()
