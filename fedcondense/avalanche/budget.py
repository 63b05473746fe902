"""How many stored images a buffer's budget stands for."""

from __future__ import annotations

from fedcondense.data.layouts import channels_come_first
from fedcondense.errors import SettingError

__all__ = ["stored_images"]


def stored_images(
    max_size: int | None,
    most: int | None,
    shape: tuple[int, int, int] | None,
    per_image: int,
    is_coded: bool,
    groups: int | None = None,
) -> int:
    """Return the plain images that would take the bytes of a budget; of coded ones, its bytes.

    Args:
        max_size: Decoded images; None: the budget is in bytes.
        most: Bytes of the file.
        shape: (C, H, W) of the stream's images, if it is known.
        per_image: How many images decode from the bytes of one.
        is_coded: Whether a codec packs them, so that their number follows from what they take.
        groups: How many classes there will be, if that is known.

    Raises:
        SettingError: There would be fewer than groups, or none, or bytes of images of an unknown size.
    """
    least, many = groups or 1, "1 class" if groups in (None, 1) else f"{groups} classes"
    if most is None:
        assert max_size is not None
        images = max_size // per_image
    elif is_coded and shape is None:
        images = most
    elif shape is None or len(shape) != 3 or min(shape) < 1:
        raise SettingError(f"shape {shape}; max_bytes needs (C, H, W), the size of the stream's images")
    elif turned := channels_come_first(shape):
        raise SettingError(f"shape {shape}; needed: (C, H, W) of the stream's images, {turned}")
    else:
        plain = shape[0] * shape[1] * shape[2]
        if (images := most if is_coded else most // plain) < least:
            raise SettingError(
                f"a buffer of {most} bytes for {many}; needed: more than {least * plain}, as a stored image, which "
                f"decodes to {per_image}, takes {plain}; or a codec, such as 'bits-2'"
            )
    if images < least:
        raise SettingError(
            f"a buffer of {max_size} decoded images for {many}; needed: {least * per_image} or more, as a stored image "
            f"decodes to {per_image}"
        )
    return images
