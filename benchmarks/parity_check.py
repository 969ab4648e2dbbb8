"""What TF32 and bfloat16 change in what an attack reads, against float32 at the highest precision.

For a network after some updates: g, the gradient of a batch's loss by the parameters; dx, that by
the images; B = 1 - cos(g, t) against the gradient t of one image with a wrong label; and dB/dx, as
gradient matching takes it: v = dB/dg in closed form, then a Jacobian-vector product of the image
gradient along v. Running statistics (eval mode), as attacks on a trained network have it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxpoison import tree, victims
from jaxpoison.types import Batch, Dataset, Victim, as_float

__all__ = ["measure"]

MODES = {
    "float32": (jnp.float32, "highest"),
    "TF32": (jnp.float32, "tensorfloat32"),
    "bfloat16": (jnp.bfloat16, None),
}


def measure(
    train: Dataset,
    network: Callable[..., Victim],
    *,
    steps: tuple[int, ...] = (0, 50, 400),
    batch: int = 64,
) -> dict[str, Any]:
    """The differences after each number of updates, by mode.

    Args:
      train: the first `batch` images are compared on, all are trained on.
      network: (dtype) -> Victim.
      steps: numbers of float32 updates, ascending.
      batch: images compared on; training takes twice as many per update.

    Returns: {"batch", "rows"}; a row is {updates, mode, gradient_error (relative), loss_error,
      matching_error (absolute, of B), and for "image" and "matching" gradients cosine, signs (share
      of equal signs) and strong_signs (where float32 exceeds 1/1000 of its maximum)}.
    """
    networks = {name: network(dtype) for name, (dtype, _) in MODES.items()}
    batch = min(batch, len(train.label) - 1)
    learner = victims.learner(networks["float32"], optax.sgd(0.05, 0.9))
    phi = jax.jit(learner.init)(jax.random.key(0))
    rows, done = [], 0
    train_some = jax.jit(_trainer(learner, train, 2 * batch), static_argnums=1)
    for updates in steps:
        with jax.default_matmul_precision("highest"):
            phi = train_some(phi, updates - done, done) if updates > done else phi
        done = updates
        found = {}
        for name, (_, precision) in MODES.items():
            with jax.default_matmul_precision(precision):
                read = jax.jit(_reader(networks[name], batch))
                found[name] = read(phi.variables, train)
        exact = found["float32"]
        rows += [
            {"updates": updates, "mode": name} | _compare(found[name], exact)
            for name in list(MODES)[1:]
        ]
    return {"batch": batch, "rows": rows}


@dataclasses.dataclass(frozen=True)
class _Read:
    """What is compared; all in float32."""

    loss: Any
    gradient: Any
    image: Any
    score: Any
    matching: Any


jax.tree_util.register_dataclass(
    _Read, ["loss", "gradient", "image", "score", "matching"], meta_fields=[]
)


def _trainer(learner, train, size):
    def run(phi, count, start):
        def update(phi, number):
            key = jax.random.fold_in(jax.random.key(1), number)
            rows = jax.random.randint(key, (size,), 0, train.label.shape[0])
            image, label = as_float(train.image[rows]), train.label[rows]
            weight = jnp.ones(size, jnp.float32)
            return learner.step(key, phi, Batch(image, label, weight, rows))[0], None

        return lax.scan(update, phi, start + jnp.arange(count))[0]

    return run


def _reader(victim, batch):
    def read(variables, train):
        def loss(params, image, label):
            logits, _ = victim.apply(variables._replace(params=params), image, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return jnp.mean(losses)

        image, label = as_float(train.image[:batch]), train.label[:batch]
        wanted = jax.grad(loss)(
            variables.params,
            as_float(train.image[batch : batch + 1]),
            (train.label[batch : batch + 1] + 1) % 10,
        )
        value, gradient = jax.value_and_grad(loss)(variables.params, image, label)

        def score(gradient):
            return 1 - tree.cosine(gradient, wanted)

        found, v = jax.value_and_grad(score)(gradient)
        size = tree.norm(v)
        direction = jax.tree.map(lambda x: x / size, v)

        def by_image(params):
            return jax.grad(loss, 1)(params, image, label)

        plain, along = jax.jvp(by_image, (variables.params,), (direction,))
        return _Read(value, gradient, plain, found, size * along)

    return read


def _compare(ours: _Read, exact: _Read) -> dict[str, Any]:
    difference = jax.tree.map(jnp.subtract, ours.gradient, exact.gradient)
    return {
        "gradient_error": float(tree.norm(difference) / tree.norm(exact.gradient)),
        "loss_error": float(abs(ours.loss - exact.loss)),
        "matching_error": float(abs(ours.score - exact.score)),
        "image": _signs(ours.image, exact.image),
        "matching": _signs(ours.matching, exact.matching),
    }


def _signs(ours: Any, exact: Any) -> dict[str, float]:
    equal = jnp.sign(ours) == jnp.sign(exact)
    strong = jnp.abs(exact) > 1e-3 * jnp.abs(exact).max()
    return {
        "cosine": float(tree.cosine(ours, exact)),
        "signs": float(equal.mean()),
        "strong_signs": float(equal[strong].mean()),
    }
