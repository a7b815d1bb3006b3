# SPDX-License-Identifier: GPL-3.0-or-later
"""Segment-anything's model from a checkpoint's weights, without torchvision."""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor, nn

from unified_lift.protocol import JobError

_PIXEL_MEAN = (123.675, 116.28, 103.53)  # of ImageNet, as segment-anything normalises photos
_PIXEL_STD = (58.395, 57.12, 57.375)
_DECODER_HEADS = 8  # of every published model; weights do not show it
_NORM_EPS = 1e-6  # of the encoder, likewise
_DEFAULT_WINDOW = 14  # where all blocks are global, and nothing depends on it


# What torch's unpickler raises on bytes that are no pickle: whatever the first wrong one leads to.
DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
)


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint; code in it is refused, never run."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise cannot_open(checkpoint, error) from error
    except DAMAGED as error:
        raise JobError(
            f"{checkpoint} holds no plain weights: it is damaged, or carries code, which is not "
            "run. Take the file from segment-anything's authors."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _no_sam_checkpoint(checkpoint, "it is no table of tensors")
    return {name: tensor.float() for name, tensor in state.items()}


def cannot_open(checkpoint: Path, error: OSError) -> JobError:
    """No such file, or none that may be read."""
    return JobError(
        f"The SAM checkpoint {checkpoint} cannot be opened ({error.strerror}). Choose the file of "
        "weights, for instance sam_vit_b_01ec64.pth."
    )


def _no_sam_checkpoint(checkpoint: Path, why: str) -> JobError:
    return JobError(
        f"{checkpoint} is no checkpoint of segment-anything's vit_b, vit_l or vit_h ({why}). "
        "Choose one of these files, for instance sam_vit_b_01ec64.pth."
    )


def build_sam(state: Mapping[str, Tensor], checkpoint: Path) -> nn.Module:
    """Build the model whose weights these are; every size is told by their shapes.

    Args:
        state: state dict of a `Sam`.
        checkpoint: its file, for messages.

    Raises:
        JobError: another model's weights.
    """
    try:
        # Without memory: the weights that were read become the model's.
        with torch.device("meta"):
            model = _empty_sam(state)
        model.load_state_dict(state, strict=True, assign=True)
    except KeyError as error:
        raise _no_sam_checkpoint(checkpoint, f"no {error.args[0]}") from error
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError, AssertionError) as error:
        why = str(error).strip().splitlines()[-1].strip()
        raise _no_sam_checkpoint(checkpoint, why) from error
    model.register_buffer("pixel_mean", torch.tensor(_PIXEL_MEAN).view(-1, 1, 1), False)
    model.register_buffer("pixel_std", torch.tensor(_PIXEL_STD).view(-1, 1, 1), False)
    return model


def _empty_sam(state: Mapping[str, Tensor]) -> nn.Module:
    modeling = import_segment_anything().modeling
    encoder = _encoder_sizes(state)
    embed_dim = encoder["out_chans"]
    grid = encoder["img_size"] // encoder["patch_size"]
    layer = "mask_decoder.transformer.layers.0"
    cross = state[f"{layer}.cross_attn_token_to_image.q_proj.weight"]
    transformer = modeling.TwoWayTransformer(
        depth=_count(state, "mask_decoder.transformer.layers"),
        embedding_dim=embed_dim,
        num_heads=_DECODER_HEADS,
        mlp_dim=state[f"{layer}.mlp.lin1.weight"].shape[0],
        attention_downsample_rate=embed_dim // cross.shape[0],
    )
    return modeling.Sam(
        modeling.ImageEncoderViT(**encoder, norm_layer=partial(nn.LayerNorm, eps=_NORM_EPS)),
        modeling.PromptEncoder(
            embed_dim=embed_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(encoder["img_size"], encoder["img_size"]),
            mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        modeling.MaskDecoder(
            transformer_dim=embed_dim,
            transformer=transformer,
            num_multimask_outputs=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
            iou_head_depth=_count(state, "mask_decoder.iou_prediction_head.layers"),
            iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        ),
    )


def _encoder_sizes(state: Mapping[str, Tensor]) -> dict:
    """Arguments of `ImageEncoderViT`, told by the shapes of its weights."""
    _, grid, _, embed_dim = state["image_encoder.pos_embed"].shape
    patch_size = state["image_encoder.patch_embed.proj.weight"].shape[-1]
    blocks = [f"image_encoder.blocks.{i}" for i in range(_count(state, "image_encoder.blocks"))]
    rel_pos = [state[f"{block}.attn.rel_pos_h"] for block in blocks]
    spans = [(len(table) + 1) // 2 for table in rel_pos]  # a table of 2 n - 1 rows spans n
    head_dim = rel_pos[0].shape[1]
    return {
        "img_size": grid * patch_size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": len(blocks),
        "num_heads": embed_dim // head_dim,
        "mlp_ratio": state[f"{blocks[0]}.mlp.lin1.weight"].shape[0] / embed_dim,
        "out_chans": state["image_encoder.neck.0.weight"].shape[0],
        "use_rel_pos": True,
        "window_size": next((span for span in spans if span != grid), _DEFAULT_WINDOW),
        "global_attn_indexes": tuple(i for i, span in enumerate(spans) if span == grid),
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are below `prefix`."""
    start = len(prefix) + 1
    numbers = {name[start:].split(".")[0] for name in state if name.startswith(prefix + ".")}
    return len(numbers)


# ---- segment-anything without torchvision


def import_segment_anything() -> ModuleType:
    """The package, imported with a stand-in for torchvision where that is missing or broken."""
    if "segment_anything" not in sys.modules:
        with _torchvision():
            try:
                import segment_anything  # noqa: F401
            except ImportError as error:
                raise JobError(
                    f"segment-anything is not installed ({error}). Set up the backend again."
                ) from error
    return sys.modules["segment_anything"]


@contextmanager
def _torchvision() -> Iterator[None]:
    """Offer the four names that segment-anything needs, for the time of its import only.

    torchvision from PyPI is linked to CUDA and breaks on import beside a CPU build of torch.
    """
    try:
        import torchvision.ops.boxes
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError):
        saved = {name: sys.modules[name] for name in sys.modules if _is_torchvision(name)}
        for name in saved:
            del sys.modules[name]
        sys.modules.update(_stand_in())
        try:
            yield
        finally:
            for name in [name for name in sys.modules if _is_torchvision(name)]:
                del sys.modules[name]
            sys.modules.update(saved)
    else:
        yield


def _is_torchvision(name: str) -> bool:
    return name.split(".")[0] == "torchvision"


def _stand_in() -> dict[str, ModuleType]:
    names = ("", ".ops", ".ops.boxes", ".transforms", ".transforms.functional")
    modules = {f"torchvision{name}": ModuleType(f"torchvision{name}") for name in names}
    boxes = modules["torchvision.ops.boxes"]
    boxes.batched_nms, boxes.box_area = batched_nms, box_area
    functional = modules["torchvision.transforms.functional"]
    functional.resize, functional.to_pil_image = resize_image, Image.fromarray
    return modules


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale to (height, width), bilinear and antialiased."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def box_area(boxes: Tensor) -> Tensor:
    """(N,) areas of (N, 4) boxes x0 y0 x1 y1."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression of boxes that overlap a better one of the same category.

    Args:
        boxes: (N, 4) float, x0 y0 x1 y1.
        scores: (N,) float.
        idxs: (N,) categories.
        iou_threshold: of two boxes with a larger IoU the better one stays.

    Returns:
        (K,) int64 indices of the boxes kept, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    idxs = idxs.to(boxes.device)
    areas = box_area(boxes)
    kept: list[Tensor] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        iou = shared / (areas[best] + areas[rest] - shared)
        order = rest[~((iou > iou_threshold) & (idxs[rest] == idxs[best]))]
    return torch.stack(kept) if kept else order
