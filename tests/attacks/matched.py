"""What poisons do to a surrogate, in the simplest form; no code of the attack is called."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxpoison as jp


def mean_loss(net, variables, image, label):
    logits, _ = net.apply(variables, image, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def slope(net, variables, image, label):
    params, stats = variables
    return jax.grad(lambda p: mean_loss(net, jp.Variables(p, stats), image, label))(params)


def targets(data):
    return data.goal.image.astype(jnp.float32) / 255, data.goal.label


def bound(net, data, image):
    """B = 1 - <t, p> / (||t|| ||p||) of the poisons in `image` [N, H, W, C]."""
    rows = data.index
    both = targets(data), (image[rows], data.train.label[rows])
    t, p = (
        jnp.concatenate([x.ravel() for x in jax.tree.leaves(slope(net, data.aux, *part))])
        for part in both
    )
    return float(1 - t @ p / jnp.linalg.norm(t) / jnp.linalg.norm(p))


def after_a_step(net, data, image):
    """The targets' loss after one SGD step of length 0.01 ||params|| on the poisons alone."""
    rows, (params, stats) = data.index, data.aux
    down = slope(net, data.aux, image[rows], data.train.label[rows])
    size = 0.01 * optax.tree.norm(params) / optax.tree.norm(down)
    after = jp.Variables(optax.tree.add_scale(params, -size, down), stats)
    return float(mean_loss(net, after, *targets(data)))


def clean(data):
    return jnp.asarray(data.train.image, jnp.float32) / 255


def sign_noise(data, eps):
    """Signs at random on the rows that may change."""
    image, rows = np.array(clean(data)), np.asarray(data.index)
    sign = np.sign(np.random.RandomState(0).randn(len(rows), *image.shape[1:]))
    image[rows] = np.clip(image[rows] + eps * sign.astype(np.float32), 0, 1)
    return jnp.asarray(image)
