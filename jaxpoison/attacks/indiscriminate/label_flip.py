"""Label flips: images of the training set with wrong labels, added or in their own place.

The oldest baseline of indiscriminate poisoning: added, x_j = x_base and y_j != y_base; nothing is
optimized. Wrong labels "random", uniform over the other classes; "next", y + 1; "least_likely", of
the other classes the one to which a network trained on clean data gives the smallest probability.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check, tree
from jaxpoison.attacks.bilevel import closed_form, of_classes
from jaxpoison.perturb import Points, free_points
from jaxpoison.types import Attack, Batch, Dataset, InputError, Perturbation, Victim, as_float
from jaxpoison.victims.checks import check_variables, num_logits

__all__ = ["label_flip"]

LABELS = ("random", "next", "least_likely")
ROWS = ("added", "changed")


def label_flip(
    victim: Victim | None = None,
    *,
    num_classes: int,
    labels: str = "random",
    rows: str = "added",
    batch_size: int = 500,
) -> Attack:
    """Copies of the base rows with wrong labels, or the rows themselves with them.

    Args:
      victim: of "least_likely" the network whose Variables are `scenario.aux`, in eval mode; else
        not read.
      num_classes: L, at least 2.
      labels: "random", "next" (modulo L) or "least_likely".
      rows: "added", one copy of every row of `scenario.index` behind the N clean ones; "changed",
        these rows get the wrong labels themselves and nothing is added.
      batch_size: rows at a time of "least_likely"; changes memory alone.

    Returns: an Attack without steps; its images are those of the training set.
    Errors: InputError for another word, num_classes < 2, or "least_likely" without a network; of a
      scenario for labels outside [0, L), no rows, or a network of other classes.
    """
    if victim is not None:
        check.kind(Victim, victim=victim)
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, batch_size=batch_size)
    check.one_of(LABELS, labels=labels)
    check.one_of(ROWS, rows=rows)
    if (victim is None) == (labels == "least_likely"):
        need = "needs the network that scenario.aux is of" if victim is None else "reads no network"
        raise InputError(f"labels = {labels!r} {need}")
    start = free_points()

    sound = of_classes(num_classes)

    def wrong(key, scenario):
        check.some_rows(scenario)
        sound(scenario)
        image = scenario.train.image[scenario.index]
        label = scenario.train.label[scenario.index]
        if victim is None:
            step = 1
            if labels == "random":
                step = jax.random.randint(key, label.shape, 1, num_classes)
            return (label + step) % num_classes
        check_variables(victim, scenario.aux, "scenario.aux")
        if (found := num_logits(victim, image.shape[1:])) != num_classes:
            raise InputError(f"num_classes = {num_classes}; the network has {found} logits")
        return _least_likely(victim, scenario.aux, image, label, batch_size)

    def init(key, scenario):
        points = start.init(key, scenario)
        return Points(points.value, wrong(key, scenario).astype(points.value.dtype))

    if rows == "changed":
        return closed_form(_relabeled(wrong))._replace(check=sound)
    return closed_form(start._replace(init=init))._replace(check=sound)


def _relabeled(wrong) -> Perturbation:
    """Theta [P], the labels of the rows in `scenario.index` as floats; images stay."""

    def init(key, scenario):
        return wrong(key, scenario).astype(jnp.float32)

    def labels(theta, scenario):
        own = lax.stop_gradient(theta).astype(scenario.train.label.dtype)
        return scenario.train.label.at[scenario.index].set(own)

    def apply(theta, scenario, rows):
        image = as_float(scenario.train.image[rows])
        label = labels(theta, scenario)[rows]
        return Batch(image, label, jnp.ones(rows.shape, image.dtype), rows.astype(jnp.int32))

    def project(theta, scenario):
        del scenario
        return theta

    def release(theta, scenario):
        return Dataset(as_float(scenario.train.image), labels(theta, scenario))

    return Perturbation(init, apply, project, release)


def _least_likely(victim, variables, image, label, batch_size):
    batches, _ = tree.batches(image, batch_size)
    scores = lax.map(lambda x: victim.apply(variables, as_float(x), train=False)[0], batches)
    scores = scores.reshape(-1, scores.shape[-1])[: label.shape[0]]
    own = jax.nn.one_hot(label, scores.shape[1], dtype=bool)
    return jnp.argmin(jnp.where(own, jnp.inf, scores), axis=1)
