"""Settings of experiments on a TFDS image set, and the images they name."""

import dataclasses
import pathlib
from typing import Any

from jaxpoison import check, data
from jaxpoison.report.study import StudyConfig
from jaxpoison.types import Split

__all__ = ["ImageConfig"]


@dataclasses.dataclass(frozen=True)
class ImageConfig(StudyConfig):
    """Settings that experiments on a prepared image set share."""

    data_dir: pathlib.Path | None = None
    """Of the prepared set (TFDS array_record, or NAME-SPLIT.npz); None is TFDS' own."""
    train_images: int = 4000
    """The first of the training set."""
    test_images: int = 2000
    """The first of the test set."""
    network: str = "small_cnn"
    """Of victims and surrogate, a name of `jaxpoison.models.create`."""
    eps: float = 32 / 255
    """L-infinity radius, pixels in [0, 1]."""
    epochs: int = 10
    """Of every victim."""

    def __post_init__(self):
        super().__post_init__()
        check.at_least(
            1, train_images=self.train_images, test_images=self.test_images, epochs=self.epochs
        )

    def load(self, name: str) -> tuple[dict[str, Any], Split]:
        """The first images of both splits of `name`.

        Returns: (source of the training set as `data.load` takes it, Split).
        Raises: InputError as in `data.load`.
        """
        folder = None if self.data_dir is None else str(self.data_dir)
        source = {"name": name, "split": f"train[:{self.train_images}]", "data_dir": folder}
        test = data.load(name, f"test[:{self.test_images}]", folder)
        return source, Split(data.load(**source), test)
