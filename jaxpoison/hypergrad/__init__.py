"""Rules for the gradient of the outer loss: `Bilevel -> Hypergrad`, interchangeable."""

from jaxpoison.hypergrad.alternating import alternating
from jaxpoison.hypergrad.one_step import one_step
from jaxpoison.hypergrad.problem import poisoned_training, rowwise_loss
from jaxpoison.hypergrad.unrolled import unrolled

__all__ = ["alternating", "one_step", "poisoned_training", "rowwise_loss", "unrolled"]
