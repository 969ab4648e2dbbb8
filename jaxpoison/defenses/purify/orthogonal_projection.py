"""OP, orthogonal projection (Sandoval-Segura et al. 2023; "LFU" in some tables of defenses).

x' = x - Q Q^T x,  Q [D, L] an orthonormal basis of the rows of W,  W = argmin mean CE(W x, y)

A linear model without bias, trained for a short while on a poisoned set, finds noise that is alike
within each class before it finds anything in the images; the images lose what it looks at.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from jaxpoison import check, models, victims
from jaxpoison.types import Batch, Dataset, Purifier, Variables, as_float

__all__ = ["lfu", "orthogonal_projection"]


def orthogonal_projection(
    *,
    num_classes: int,
    num_steps: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 0.1,
    clip: bool = False,
) -> Purifier:
    """Remove from every image its part in the span of a linear classifier's weights.

    The fit is SGD without momentum or weight decay on pixels in [0, 1], the rate x 0.1 after half
    and again after three quarters of the epochs (10 and 15 of 20). As in the source batches are
    consecutive rows, in the same order in every epoch; the last may be smaller. A set that is
    sorted by class should be shuffled first.

    The fit reads the labels of all rows, and what is taken away has their signs: a probe fitted on
    some purified rows is wrong more often than chance on the others (`leak_probe`).

    Args:
      num_classes: L.
      num_steps: epochs of the fit, at least 2.
      batch_size: B; smaller sets are one batch.
      learning_rate: of the first half.
      clip: clip the result to [0, 1]; then W x' = 0 holds no longer.

    Returns: a Purifier whose images are float32, and may leave [0, 1] unless clipped. Its state is
      the linear model in training; the info of an epoch is what `victims.learner` says of its
      updates, averaged by their rows.
    Errors: InputError for a bad value; before the fit, for labels beyond num_classes.
    Source: Sandoval-Segura et al. 2023, section 4 and released code. Its victims, trained
      with strong augmentation and CutMix, are those of `victims.recipes.orthogonal_projection`.
    """
    check.at_least(2, num_classes=num_classes, num_steps=num_steps)
    recipe = victims.Recipe(
        epochs=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule="step",
        milestones=(num_steps // 2, num_steps * 3 // 4),
        momentum=0.0,
        source="Sandoval-Segura et al. 2023, released code",
    )

    def model_of(dataset):
        num, *shape = dataset.image.shape
        victim = models.logistic_regression(shape, num_classes, bias=False)
        return victims.learner(victim, recipe.optimizer_for(num))

    def init(key, dataset):
        return model_of(dataset).init(key)

    def step(key, state, dataset):
        model, num = model_of(dataset), len(dataset.label)
        size = min(batch_size, num)

        def take(state, start, size=size):
            some = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), dataset)
            rows, ones = start + jnp.arange(size), jnp.ones(size, jnp.float32)
            batch = Batch(as_float(some.image), some.label, ones, rows)
            return model.step(key, state, batch)

        full, rest = num // size, num % size
        state, info = lax.scan(take, state, size * jnp.arange(full))
        mean = jax.tree.map(lambda x: jnp.sum(x, axis=0) * size / num, info)
        finite = jnp.all(info.finite)
        if rest:
            state, last = take(state, full * size, rest)
            mean = jax.tree.map(lambda x, y: x + y * rest / num, mean, last)
            finite &= last.finite
        return state, mean._replace(finite=finite)

    def apply(key, state, dataset):
        del key
        image = _projected(state.variables, jnp.asarray(dataset.image))
        return Dataset(jnp.clip(image, 0, 1) if clip else image, dataset.label)

    def sound(dataset):
        check.labels(num_classes, **{"labels of the training set": dataset.label})

    return Purifier(init, step, apply, num_steps, sound)


lfu = orthogonal_projection
"""The name of the method's repository, "learn from unlearnable"."""


@jax.jit
def _projected(variables: Variables, image: Num[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """The rows less Q Q^T x, with Q from a thin QR of W^T, its columns scaled to length 1 first."""
    (kernel,) = jax.tree.leaves(variables.params)
    columns = kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)
    basis, _ = jnp.linalg.qr(columns)

    x = as_float(image).reshape(len(image), -1)
    part = jnp.matmul(x, basis, precision=lax.Precision.HIGHEST)
    return (x - jnp.matmul(part, basis.T, precision=lax.Precision.HIGHEST)).reshape(image.shape)
