"""The judge: a classifier that says which known word an edited picture shows.

It takes no part in any edit, and nothing but the data set is shared between its training and that of the CLIP that
guides: another architecture, other augmentations, other seeds, and a second artist's drawings of every word.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ResNetForImageClassification


JUDGE_FOLDER = Path(__file__).parent / "judge_model"
NOTHING = "nothing"  # the last label: a plain photo
BATCH_SIZE = 64  # pictures at once; only memory depends on it


class Judge:
    """Says which of its words a picture shows.

    Give it the square round the mask, cut out of the edited photo with the background visible and no mask applied: it
    was trained on objects whose longer side is 30 to 95 % of the picture's.

    Args:
        model (`ResNetForImageClassification`): its labels are the words and, last, [`NOTHING`]; its config has an
            `image_size`.

    Attributes:
        words (`list[str]`): what the columns of [`Judge.probabilities`] stand for, without the last.
        nothing (`str`): what the last column stands for.
    """

    nothing = NOTHING

    def __init__(self, model: ResNetForImageClassification) -> None:
        self.model = model.eval()
        self.words = [model.config.id2label[number] for number in range(model.config.num_labels - 1)]
        self.size: int = model.config.image_size

    @classmethod
    def load(cls, folder: str | Path = JUDGE_FOLDER, device: str | torch.device = "cpu") -> "Judge":
        """The judge in a folder; by default the bundled one. Its weights are computed with in fp32.

        Raises:
            ValueError: there is no judge.
        """
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder} holds no judge: train one with `python -m training.train_judge`.")
        model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32)
        return cls(model.to(device))

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """How likely each word is, and that there is nothing.

        Args:
            images (`Sequence[PIL.Image.Image]`): square RGB pictures of any size.

        Returns:
            `torch.Tensor` of shape `(N, len(words) + 1)`: rows that sum to 1, on the CPU.

        Raises:
            ValueError: there are no pictures, or one is not square or not RGB.
        """
        return self.model.classifier(self._pooled(images)).softmax(dim=-1).cpu()

    def verdicts(self, images: Sequence[Image.Image]) -> list[str]:
        """The likeliest word for each picture, or [`NOTHING`]; arguments and errors as of [`Judge.probabilities`]."""
        return self.likeliest(self.probabilities(images))

    def likeliest(self, probabilities: torch.Tensor) -> list[str]:
        """The word of each row of what [`Judge.probabilities`] gave, or [`NOTHING`]."""
        names = [*self.words, self.nothing]
        return [names[column] for column in probabilities.argmax(dim=1)]

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """What the last layer sees: a vector for each picture, to compare pictures by.

        Args:
            images (`Sequence[PIL.Image.Image]`): as for [`Judge.probabilities`], with the same errors.

        Returns:
            `torch.Tensor` of shape `(N, C)`, on the CPU.
        """
        return self._pooled(images).cpu()

    def _pooled(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = prepare(images, self.size).to(self.model.device)
        parts = [self.model.resnet(part).pooler_output.flatten(1) for part in pixels.split(BATCH_SIZE)]
        return torch.cat(parts)


def prepare(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """Pictures as the network takes them.

    Returns:
        `torch.Tensor` of shape `(N, 3, size, size)` in [−1, 1], reduced with antialiasing.
    """
    if not images:
        raise ValueError("There are no pictures to judge.")
    for number, image in enumerate(images):
        if image.mode != "RGB" or image.width != image.height:
            raise ValueError(
                f"Picture {number} is {image.mode} of {image.width}×{image.height}, "
                "but the judge takes square RGB pictures: cut out the square round the mask."
            )
    # Pillow widens its filter when it reduces, which is antialiasing
    resized = [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1
