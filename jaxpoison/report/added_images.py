"""Settings of experiments with added points on image sets, at a paper's scale or a small one."""

import dataclasses
import pathlib
from typing import Any, ClassVar, Literal, Self

from jaxpoison import check
from jaxpoison.report.added_config import AddedConfig
from jaxpoison.report.images import load_images
from jaxpoison.types import Split

__all__ = ["AddedImageConfig"]


@dataclasses.dataclass(frozen=True)
class AddedImageConfig(AddedConfig):
    """Settings that experiments with added points on a prepared image set share.

    A script's `SMALL` holds its settings at the small scale; what it does not name is as at the
    paper's. A small run shows the effect and reproduces nothing.
    """

    SMALL: ClassVar[dict[str, Any]] = {}

    scale: Literal["paper", "small"] = "paper"
    """Chooses all defaults: the paper's, or of some minutes on two CPU cores (--scale small)."""
    data_dir: pathlib.Path | None = None
    """Of the prepared set (TFDS array_record, or NAME-SPLIT.npz); None is TFDS' own."""
    train_images: int | None = None
    """The first of the training set; None is all."""
    test_images: int | None = None
    """The first of the test set; None is all."""

    def __post_init__(self):
        super().__post_init__()
        check.one_of(("paper", "small"), scale=self.scale)
        numbers = {k: getattr(self, k) for k in ("train_images", "test_images")}
        check.at_least(1, **{k: v for k, v in numbers.items() if v is not None})

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """By value of `scale`: what `--scale` starts from, see `command_line`."""
        return {"paper": cls(), "small": cls.small()}

    @classmethod
    def small(cls, **options: Any) -> Self:
        """The small scale, other settings as given."""
        settings: dict[str, Any] = {"scale": "small", **cls.SMALL, **options}
        return cls(**settings)

    def load(self, name: str) -> tuple[dict[str, Any], Split]:
        """As `ImageConfig.load`."""
        return load_images(name, self.data_dir, self.train_images, self.test_images)
