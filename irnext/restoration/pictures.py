"""Restoring pictures of any size in memory."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import images
from .inference import HALF, check_dtype, check_memory, continued, inference, prepared, scale_of, sizes
from .tiles import check_tiles, run_tiles

# Resizing and filtering leave values a little outside [0, 1]: beyond these the range is another.
LOWEST, HIGHEST = -0.25, 2.0


def restore(
    model: nn.Module,
    image: Image.Image | np.ndarray | Tensor,
    *,
    tile: int | None = None,
    overlap: int = 32,
    max_memory: int | str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Image.Image | np.ndarray | Tensor:
    """Restore a picture of any size from 1x1 pixels.

    The picture is continued by reflection to the right and below, to a multiple of
    `model.size_multiple` (32 for IRNeXt) and at least `model.minimum_size` (64) pixels; the result is
    cropped and clamped to [0, 1]. The continuation is part of the result, as in the published
    evaluation: the plane means see it. A model that enlarges (`model.scale`) gives a larger picture.
    The model runs in eval mode and is left as it was.

    Without `tile` and `max_memory` the whole picture goes through the model at once. `max_memory`
    bounds the memory of an IRNeXt exactly: layers are computed in bands where the picture is large,
    with the statistics of the whole picture. Tiles bound the memory of any model, and further, but are
    not exact: the plane means and the InstanceNorm of IRNeXt then see one tile instead of the
    picture. They are exact for a model whose output depends on at most overlap / 4 pixels around.

    Args:
        model: any module from (N, 3, H, W) to the same, or to a list whose last item that is, or the item
            that its `result_index` says; see `irnext.architecture.RestorationModel`.
        image: a PIL image (see `irnext.images` for its modes; the EXIF orientation is not applied);
            an array (H, W, 3) of uint8, or floating-point in [0, 1]; or a floating-point tensor
            (3, H, W) or (N, 3, H, W) in [0, 1]. Values a little outside are taken as they are;
            an empty batch comes back as it is, or in the size of the results.
        tile: side of square tiles in pixels, a multiple of 32; None for the whole picture.
        overlap: pixels shared by neighbouring tiles, at most tile / 2. The outer quarter of it is
            not used, where the tile's edge disturbs the model; over the inner half one tile fades
            into the other.
        max_memory: bytes, or a text such as "8G" or "500M", that restoring may take beside the model
            and the picture given; "auto" for nine tenths of what is free, where that is known. The
            model is an IRNeXt, optimized or not; the latter is optimized for this call.
        dtype: what to compute in; None for the model's own type. float16 and bfloat16 run a
            float32 model by autocast, any other change runs a copy of the model.
        device: where to compute; None for where the model is. A copy of the model goes elsewhere.

    Returns:
        The restored picture: same kind, size (times `model.scale`), type and device as `image`.

    Raises:
        ValueError: a picture of another shape, type or range, NaN or infinite values, tiles that
            do not fit the rule, a type or device that cannot be used; a `max_memory` that is no size, is
            lower than this picture needs, or is for a model that cannot be bounded.
        FloatingPointError: the model's output is not finite, as in float16 beyond its range.
        MemoryError: the picture, or the tile, is too large for the device.
    """
    check_tiles(model, tile, overlap)
    check_memory(model, tile, max_memory)
    check_dtype(model, dtype)
    options = {"tile": tile, "overlap": overlap, "max_memory": max_memory, "dtype": dtype, "device": device}
    if isinstance(image, Image.Image):
        simple = images.simplify(image)
        return images.with_colour(simple, restore(model, images.colour(simple), **options))
    if isinstance(image, np.ndarray):
        batch = _batch_of_array(image)
    elif isinstance(image, Tensor):
        batch = _batch_of_tensor(image)
    else:
        raise ValueError(f"the picture is a {type(image).__name__}: give a PIL image, an array or a tensor")
    _check_values(batch)
    scale = scale_of(model)
    height, width = (scale * side for side in batch.shape[2:])
    if not len(batch):
        return image if scale == 1 else image.new_zeros(*image.shape[:-2], height, width)
    fallback = device or batch.device
    batch = continued(batch, *sizes(model))
    if isinstance(image, Tensor) and batch.data_ptr() == image.data_ptr():
        batch = batch.clone()  # models may write over what they get
    model, dtype = prepared(model, dtype, device, max_memory)
    with inference(model, dtype, fallback, max_memory) as run:
        if tile is None:
            restored = run(batch)
        else:
            restored = run_tiles(run, batch, tile, overlap, sizes(model)[0], scale)
    result = restored[:, :, :height, :width].clamp(0, 1)
    if isinstance(image, Tensor):
        return result.reshape(*image.shape[:-2], height, width).to(image.dtype)
    values = result[0].permute(1, 2, 0).numpy()
    if image.dtype == np.uint8:
        values = np.rint(values * 255)
    return np.ascontiguousarray(values, dtype=image.dtype)


def _batch_of_array(image: np.ndarray) -> Tensor:
    """(H, W, 3) to (1, 3, H, W), uint8 divided by 255."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the array has shape {image.shape}: it must be (H, W, 3)")
    if image.dtype == np.uint8:
        values = np.divide(image, 255, dtype=np.float32)
    elif image.dtype.kind == "f" and image.itemsize <= 8:
        values = image.astype(np.float64 if image.itemsize == 8 else np.float32)
    else:
        raise ValueError(f"the array is {image.dtype}: it must be uint8, or floating-point in [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


def _batch_of_tensor(image: Tensor) -> Tensor:
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(f"the tensor has shape {tuple(image.shape)}: it must be (3, H, W) or (N, 3, H, W)")
    if not image.is_floating_point():
        raise ValueError(f"the tensor is {image.dtype}: it must be floating-point in [0, 1]")
    batch = image.detach().reshape(-1, *image.shape[-3:]) if image.ndim == 3 else image.detach()
    return batch.float() if batch.dtype in HALF else batch


def _check_values(batch: Tensor) -> None:
    if 0 in batch.shape[2:]:
        raise ValueError(f"the picture has {batch.shape[3]}x{batch.shape[2]} pixels: at least 1x1 is needed")
    if not batch.isfinite().all():
        raise ValueError("the picture holds NaN or infinite values: it must be in [0, 1]")
    if not batch.numel():
        return
    if batch.min() < LOWEST:
        raise ValueError(
            f"the picture holds values down to {batch.min():g}: floating-point pictures must be in [0, 1]; "
            "bring [-1, 1] there by (x + 1) / 2"
        )
    if batch.max() > HIGHEST:
        raise ValueError(
            f"the picture holds values up to {batch.max():g}: floating-point pictures must be in [0, 1]; "
            "divide by 255, or give an array of uint8"
        )
