"""Labeled images: sources, checks, augmentations, and data made from a key."""

from jaxpoison.data import augment, mixing, poisoned, rounding, setups, synthetic
from jaxpoison.data.check_dataset import check_dataset
from jaxpoison.data.export import export
from jaxpoison.data.setups import Setup, without_targets
from jaxpoison.data.shrinking import shrunk
from jaxpoison.data.sources import class_names, digits, from_npz, from_tfds, load
from jaxpoison.data.stream import Rows, StreamSplit, hold, stream
from jaxpoison.data.subsets import first_per_class, poison_rows, split_validation
from jaxpoison.data.sweeps import stack_setups
from jaxpoison.data.views import Views
from jaxpoison.data.with_poison import with_added, with_poison

__all__ = [
    "Rows",
    "Setup",
    "StreamSplit",
    "Views",
    "augment",
    "check_dataset",
    "class_names",
    "digits",
    "export",
    "first_per_class",
    "from_npz",
    "from_tfds",
    "hold",
    "load",
    "mixing",
    "poison_rows",
    "poisoned",
    "rounding",
    "setups",
    "shrunk",
    "split_validation",
    "stack_setups",
    "stream",
    "synthetic",
    "without_targets",
    "with_added",
    "with_poison",
]
