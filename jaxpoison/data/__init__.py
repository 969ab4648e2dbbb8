"""Labeled images: sources, checks, augmentations, and data made from a key."""

from jaxpoison.data import augment, synthetic
from jaxpoison.data.check import check
from jaxpoison.data.sources import digits, from_npz, from_tfds, load

__all__ = ["augment", "check", "digits", "from_npz", "from_tfds", "load", "synthetic"]
