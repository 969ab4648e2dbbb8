"""Attacks, each a factory named as its file: settings in, `Attack` out."""

from jaxpoison.attacks.bilevel import bilevel, closed_form
from jaxpoison.attacks.selection import keep_best
from jaxpoison.attacks.unlearnable.deepconfuse import deepconfuse
from jaxpoison.attacks.unlearnable.error_maximizing import error_maximizing
from jaxpoison.attacks.unlearnable.error_minimizing import error_minimizing
from jaxpoison.attacks.unlearnable.lsp import lsp
from jaxpoison.attacks.unlearnable.one_pixel import one_pixel
from jaxpoison.attacks.unlearnable.random_noise import random_noise

__all__ = [
    "bilevel",
    "closed_form",
    "deepconfuse",
    "error_maximizing",
    "error_minimizing",
    "keep_best",
    "lsp",
    "one_pixel",
    "random_noise",
]
