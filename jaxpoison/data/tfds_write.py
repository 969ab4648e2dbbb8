"""Writing a set for TensorFlow Datasets without TensorFlow: array_record, PNG images."""

import contextlib
import io
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from jaxpoison import check

__all__ = ["png", "write_tfds"]


def png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """A PNG file of grey levels [H, W, C], C = 1 (grey), 3 (RGB) or 4 (RGBA); lossless."""
    buffer = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tfds(
    data_dir: pathlib.Path,
    name: str,
    image: UInt8[np.ndarray, "n h w c"],
    label: Int[np.ndarray, " n"],
    *,
    class_names: Sequence[str],
    columns: Mapping[str, np.ndarray],
    description: str,
) -> None:
    """A set `name`, version 1.0.0, split "train", that `tfds.data_source` reads; rows keep order.

    Args:
      data_dir: folder of the set, as `tfds.data_source(name, data_dir=...)` takes it.
      name: lower case, a Python identifier.
      image: as it is stored.
      label: in [0, L).
      class_names: L names.
      columns: further integer or boolean features, [N] each.
      description: for dataset_info.json.

    Raises: OSError where it cannot be written.
    """
    # Imported here: slow, and unneeded by the other formats.
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=image.shape[1:], encoding_format="png"),
        "label": tfds.features.ClassLabel(names=list(class_names)),
        **{key: tfds.features.Scalar(dtype=values.dtype.type) for key, values in columns.items()},
    }

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The arrays at hand."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for row, (pixels, number) in enumerate(zip(image, label, strict=True)):
                more = {key: values[row].item() for key, values in columns.items()}
                yield row, {"image": png(pixels), "label": int(number), **more}

    Builder.name = name
    try:
        said = io.StringIO()  # that it downloads, which it does not, and progress bars
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            Builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
        shutil.rmtree(data_dir / "downloads", ignore_errors=True)  # made for nothing
    except RuntimeError as error:  # array_record's own
        raise OSError(check.one_line(error)) from error
