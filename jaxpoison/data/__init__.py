"""Labeled images: sources, checks, augmentations, and data made from a key."""

from jaxpoison.data import synthetic
from jaxpoison.data.check import check
from jaxpoison.data.sources import digits, from_npz

__all__ = ["check", "digits", "from_npz", "synthetic"]
