"""Two layers that no framework has, as NumPy functions: the definition that every other form is compared with."""

import numpy as np


def hard_mish(x, gain):
    """A cheap smooth activation with one slope per channel: `0.5 * x * clip(x + 2, 0, 2) * gain`.

    Args:
        x: float32 or float16, any shape.
        gain: the same type; broadcast against `x` with at most one axis that is not 1, which is x's channel axis:
            (C, 1, 1) or (1, C, 1, 1) for N C H W, (C,) for N H W C.
    Returns:
        An array like `x`: computed in float32 from left to right, rounded once at the end. NaN stays NaN, and so does
        minus infinity times the 0 of the clip.
    Example:
        >>> hard_mish(np.float32([-3, -1, 0, 4]), np.float32([1]))
        array([-0. , -0.5,  0. ,  4. ], dtype=float32)
    """
    wide, slope = x.astype(np.float32), gain.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        moved = np.clip(wide + np.float32(2), np.float32(0), np.float32(2))
        return (np.float32(0.5) * wide * moved * slope).astype(x.dtype)


def warp(image, flow):
    """Look up each pixel of the answer at a moved place of the picture: the motion compensation of a video coder.

    Args:
        image: (N, H, W, C) float32 or float16.
        flow: (N, H, W, 2) of the same type: how far to move down the rows and along the columns, in pixels.
    Returns:
        An array like `image`. At (row, column): the bilinear value of `image` at (row + flow[..., 0],
        column + flow[..., 1]), positions clamped to the picture's border; computed in float32, rounded once at the end.
        A position that is NaN counts as 0, an infinite one as the border. A neighbour that is NaN or infinite is felt
        where its weight is 0, too.
    Example:
        >>> picture = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
        >>> moves = np.zeros((1, 2, 3, 2), np.float32)
        >>> moves[0, 0, 0] = 0.5, 0.5  # the middle of 0, 1, 3 and 4
        >>> moves[0, 1, 2] = 9, -1  # clamped to the last row, one to the left
        >>> warp(picture, moves)[0, ..., 0]
        array([[2., 1., 2.],
               [3., 4., 4.]], dtype=float32)
    """
    batch, height, width, _ = image.shape
    wide, moves = image.astype(np.float32), flow.astype(np.float32)
    top, bottom, down = _neighbours(np.arange(height, dtype=np.float32)[:, None] + moves[..., 0], height)
    left, right, along = _neighbours(np.arange(width, dtype=np.float32) + moves[..., 1], width)
    one = np.arange(batch)[:, None, None]
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        upper = _between(wide[one, top, left], wide[one, top, right], along)
        lower = _between(wide[one, bottom, left], wide[one, bottom, right], along)
        return _between(upper, lower, down).astype(image.dtype)


def _neighbours(position, size):
    """The two pixels around each position, as indices, and the share of the second."""
    clamped = np.fmin(np.fmax(position, np.float32(0)), np.float32(size - 1))
    first = np.floor(clamped)
    index = first.astype(np.int64)
    return index, np.minimum(index + 1, size - 1), clamped - first


def _between(first, second, share):
    return first + (second - first) * share[..., None]
