"""Sizes of files, as the lines of progress show them."""


def megabytes(size: int) -> str:
    """Bytes to megabytes, with a decimal where there are few."""
    return f"{size / 1e6:.0f} MB" if size >= 10e6 else f"{size / 1e6:.1f} MB"
