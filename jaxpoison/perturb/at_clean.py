"""Gradients taken at the clean images, whatever the perturbation has become."""

from jax import lax

from jaxpoison.types import Perturbation, as_float

__all__ = ["at_clean"]


def at_clean(space: Perturbation) -> Perturbation:
    """`space` whose images are the clean ones, and whose derivative is that of `space`.

    apply(theta) = x + (s(theta) - stop_gradient(s(theta))),  s the images of `space`, so that of an
    additive perturbation every gradient is d loss / d x at delta = 0: first-order, as of a delta
    too small to matter. `init` and `project` are those of `space`.

    Args:
      space: an additive perturbation that does not clip, `per_sample`.

    Source: Geiping et al. 2021, released code, option "clean_grad".
    """

    def apply(theta, scenario, rows):
        batch = space.apply(theta, scenario, rows)
        clean = as_float(scenario.train.image[rows]).astype(batch.image.dtype)
        return batch._replace(image=clean + (batch.image - lax.stop_gradient(batch.image)))

    return Perturbation(space.init, apply, space.project)
