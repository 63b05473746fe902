"""Numbers as people write them."""

__all__ = ["human_bytes"]


def human_bytes(nbytes: float) -> str:
    """Write a number of bytes as people do, in powers of 1000.

    >>> human_bytes(999), human_bytes(37_460), human_bytes(1_932_000)
    ('999 B', '37.5 kB', '1.93 MB')
    """
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
