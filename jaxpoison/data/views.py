"""Two views of an image, for contrastive learning: resized crop, mirror, colors, blur."""

import dataclasses

from jaxpoison import check
from jaxpoison.data import augment, colors
from jaxpoison.data.crops import check_crop, resized_crop
from jaxpoison.types import InputError

__all__ = ["Views"]


@dataclasses.dataclass(frozen=True)
class Views:
    """How the two views of an image are drawn, each on its own.

    crop -> jitter -> grey -> blur -> solarize -> mirror; the mirror changes nothing before it. Of
    images of one channel (digits) hue, saturation and grey are the identity.

    Attributes:
      area: least and largest share of the image that a crop takes.
      ratio: least and largest width / height of a crop.
      jitter: strengths of brightness, contrast, saturation, and turn of the hue.
      jitter_probability: per image and view.
      grayscale: probability.
      blur: probability in the first and in the second view.
      blur_sigma: least and largest, pixels.
      solarize: probability in the first and in the second view.
      flip: probability of the mirror; 0 for digits.

    Errors: InputError for a value that cannot be used.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, ...] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: tuple[float, ...] = (0.0, 0.0)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: tuple[float, ...] = (0.0, 0.0)
    flip: float = 0.5

    def __post_init__(self):
        check_crop(self.area, self.ratio)
        if len(self.jitter) != 4:
            raise InputError(
                f"jitter = {self.jitter}; it must be brightness, contrast, saturation, hue"
            )
        check.fraction(jitter_probability=self.jitter_probability, grayscale=self.grayscale)
        for name in ("blur", "solarize"):
            pair = getattr(self, name)
            if len(pair) != 2:
                raise InputError(f"{name} = {pair}; it must be a probability for each of two views")
            for value in pair:
                check.fraction(**{name: value})
        self.augmentations()

    def augmentations(self) -> tuple[augment.Augmentation, augment.Augmentation]:
        """That of the first view and that of the second."""
        first, second = map(self._view, self.blur, self.solarize)
        return first, second

    def _view(self, blur: float, solarize: float) -> augment.Augmentation:
        """Stages of probability zero are left out; the others keep their keys."""
        brightness, contrast, saturation, hue = self.jitter
        color = colors.color_jitter(
            brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
        )
        stages = (
            (resized_crop(area=self.area, ratio=self.ratio), 1.0),
            (color, self.jitter_probability),
            (colors.grayscale(), self.grayscale),
            (colors.blur(sigma=self.blur_sigma), blur),
            (colors.solarize(), solarize),
            (augment.flip(probability=1.0), self.flip),
        )
        return augment.compose(*(_stage(*stage) for stage in stages))


def _stage(augmentation: augment.Augmentation, probability: float) -> augment.Augmentation:
    if probability == 1:
        return augmentation
    return colors.sometimes(augmentation, probability) if probability else augment.compose()
