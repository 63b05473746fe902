"""How many stored images a buffer's budget stands for."""

from __future__ import annotations

from fedcondense.errors import SettingError

__all__ = ["stored_images"]


def stored_images(
    max_size: int | None, most: int | None, shape: tuple[int, int, int] | None, per_image: int, is_coded: bool
) -> int:
    """Return the plain images that would take the bytes of a budget; of coded ones, its bytes.

    Args:
        max_size: Decoded images; None: the budget is in bytes.
        most: Bytes of the file.
        shape: (C, H, W) of the stream's images, if it is known.
        per_image: How many images decode from the bytes of one.
        is_coded: Whether a codec packs them, so that their number follows from what they take.

    Raises:
        SettingError: There would be none, or bytes of images of an unknown size.
    """
    if most is None:
        assert max_size is not None
        images = max_size // per_image
    elif is_coded and shape is None:
        images = most
    elif shape is None or len(shape) != 3 or min(shape) < 1:
        raise SettingError(f"shape {shape}; max_bytes needs (C, H, W), the size of the stream's images")
    else:
        images = most if is_coded else most // (shape[0] * shape[1] * shape[2])
    if images < 1:
        size = f"{most} bytes" if max_size is None else f"{max_size} decoded images"
        raise SettingError(f"a buffer of {size}; needed: at least one stored image, which decodes to {per_image}")
    return images
