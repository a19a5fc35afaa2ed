"""Masks that networks find: what words name, by CLIPSeg, and what clicks are on, by SAM 2.

What belongs here calls transformers' models. torch is imported where it is needed, because most masks need none.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import PIL.Image

from blended_diffusion.masks.shapes import Point, check_inside, mask_where, without_holes, without_specks


if TYPE_CHECKING:
    import torch


WORDS_MODEL = "CIDAS/clipseg-rd64-refined"
CLICK_MODEL = "facebook/sam2.1-hiera-tiny"

# how likely a pixel has to be that words apply to it
THRESHOLD = 0.4


def from_words(
    photo: PIL.Image.Image,
    words: str,
    model: str = WORDS_MODEL,
    threshold: float = THRESHOLD,
    device: "torch.device | str" = "cpu",
    argument: str = "model",
) -> PIL.Image.Image:
    """What words name, as CLIPSeg sees it (Lüddecke and Ecker, CVPR 2022, arXiv 2112.10003).

    The network looks at the whole photo at its own small size, so that outlines are rough: grow the mask.

    Args:
        photo (`PIL.Image.Image`): of any mode.
        words (`str`): such as `"the dog"`.
        model (`str`): a folder or Hub id that `CLIPSegForImageSegmentation` and `CLIPSegProcessor` load.
        threshold (`float`): how likely a pixel has to be, from 0 to 1. Less takes in more.
        device (`torch.device` or `str`): where to compute.
        argument (`str`): what to call `model` in error messages.

    Returns:
        `PIL.Image.Image` of mode `L`, 255 where the words apply. Specks are dropped and holes filled.

    Raises:
        ValueError: the model cannot be loaded, the words are too many for it, or they are nowhere in the photo.
    """
    import torch
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    processor, network = _load(CLIPSegProcessor, CLIPSegForImageSegmentation, ("clipseg",), model, device, argument)
    inputs = processor(text=[words], images=[photo.convert("RGB")], padding=True, return_tensors="pt").to(device)
    length, longest = inputs["input_ids"].shape[1], network.config.text_config.max_position_embeddings
    if length > longest:
        raise ValueError(f"The words {words!r} are {length} tokens; {model} reads {longest}: give less words.")
    with torch.inference_mode():
        logits = network(**inputs).logits
    height_and_width = photo.size[::-1]
    large = torch.nn.functional.interpolate(logits[None].float(), height_and_width, mode="bilinear")
    likely = large[0, 0].sigmoid()
    mask = without_holes(without_specks(mask_where((likely > threshold).cpu().numpy())))
    if mask.getbbox() is None:
        raise ValueError(
            f"The words {words!r} are nowhere in the photo: no part of it is more likely than {threshold:g} (the most"
            f" likely pixel: {likely.max():.2f}); say it in other words, or lower the threshold."
        )
    return mask


def from_click(
    photo: PIL.Image.Image,
    points: Sequence[Point],
    model: str = CLICK_MODEL,
    device: "torch.device | str" = "cpu",
    argument: str = "model",
) -> PIL.Image.Image:
    """The object that one or several points are on, as SAM 2 sees it (Ravi and others, arXiv 2408.00714).

    One point may mean a part, a thing or several things: of SAM's three answers the one it trusts most is taken.
    Several points on the same object say which.

    Args:
        photo (`PIL.Image.Image`): of any mode.
        points (`Sequence[tuple[float, float]]`): `(x, y)` in the photo's pixels.
        model (`str`): a folder or Hub id that `Sam2Model` and `Sam2Processor` load.
        device (`torch.device` or `str`): where to compute.
        argument (`str`): what to call `model` in error messages.

    Returns:
        `PIL.Image.Image` of mode `L`, 255 on the object. Specks are dropped and holes filled.

    Raises:
        ValueError: the model cannot be loaded, a point is outside the photo, or there is no object.
    """
    written = f"click {' '.join(f'{x:g},{y:g}' for x, y in points)}"
    check_inside(points, photo.size, written)
    import torch
    from transformers import Sam2Model, Sam2Processor

    # the published checkpoints are those of the video model, which holds the picture's
    processor, network = _load(Sam2Processor, Sam2Model, ("sam2", "sam2_video"), model, device, argument)
    inputs = processor(
        images=photo.convert("RGB"),
        input_points=[[[[float(x), float(y)] for x, y in points]]],
        input_labels=[[[1] * len(points)]],
        return_tensors="pt",
    ).to(device)
    with torch.inference_mode():
        out = network(**inputs, multimask_output=len(points) == 1)
    best = out.iou_scores[0, 0].argmax()
    trusted = out.pred_masks[:, :, best][:, :, None].float().cpu()
    (found,) = processor.post_process_masks(trusted, inputs["original_sizes"])
    mask = without_holes(without_specks(mask_where(found[0, 0].cpu().numpy())))
    if mask.getbbox() is None:
        raise ValueError(f"The {written} is on no object that {model} sees; click on its middle.")
    return mask


@functools.cache  # many photos, one network
def _load(
    processor: Any, network: Any, kinds: tuple[str, ...], name: str, device: "torch.device | str", argument: str
) -> tuple[Any, Any]:
    """A processor and its network, on `device`.

    Raises:
        ValueError: there is no such model, it is of another kind than `kinds`, or it is damaged.
    """
    from safetensors import SafetensorError
    from transformers import PreTrainedConfig

    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        if kind not in kinds:
            raise ValueError(f"it is of the kind {kind!r}, and {kinds[0]!r} is needed")
        return processor.from_pretrained(name), network.from_pretrained(name).to(device).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{argument} {name!r} cannot be loaded ({reason}); give a Hub id or the folder of such a model."
        ) from error
