"""Answers from outside the code under test: closed forms, finite differences, tiny nets."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_image

from jaxpoison.types import (
    Bilevel,
    Dataset,
    Generator,
    Scenario,
    TrainState,
    Variables,
    Victim,
)


def central_differences(fn: Any, x: np.ndarray, *, width: float = 1e-5) -> np.ndarray:
    """d fn / d x by (fn(x + h) - fn(x - h)) / 2h, entry by entry, in float64."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[i] = width
        gradient[i] = (float(fn(x + step)) - float(fn(x - step))) / (2 * width)
    return gradient


class Quadratic(NamedTuple):
    """inner = (phi - A theta)^T H (phi - A theta) / 2;  outer = |phi - b|^2 / 2 + c . theta."""

    a: np.ndarray
    h: np.ndarray
    b: np.ndarray
    c: np.ndarray
    start: np.ndarray
    rate: float

    def after(self, theta: np.ndarray, steps: int, start: np.ndarray | None = None) -> np.ndarray:
        """phi after `steps` of gradient descent: A theta + (I - rate H)^K (phi_0 - A theta)."""
        best = self.a @ theta
        shrink = np.linalg.matrix_power(np.eye(len(self.b)) - self.rate * self.h, steps)
        return best + shrink @ ((self.start if start is None else start) - best)

    def hypergradient(self, theta: np.ndarray, steps: int) -> np.ndarray:
        """d outer(phi_K(theta), theta) / d theta."""
        shrink = np.linalg.matrix_power(np.eye(len(self.b)) - self.rate * self.h, steps)
        jacobian = (np.eye(len(self.b)) - shrink) @ self.a
        return jacobian.T @ (self.after(theta, steps) - self.b) + self.c


def quadratic(*, leader: int = 3, follower: int = 4, rate: float = 0.1) -> Quadratic:
    """A random instance with eigenvalues of H in [0.5, 3]."""
    rng = np.random.RandomState(0)
    basis, _ = np.linalg.qr(rng.randn(follower, follower))
    h = basis @ np.diag(np.linspace(0.5, 3, follower)) @ basis.T
    return Quadratic(
        rng.randn(follower, leader), h, rng.randn(follower), rng.randn(leader),
        rng.randn(follower), rate,
    )  # fmt: skip


def quadratic_problem(q: Quadratic) -> Bilevel:
    """The same game as a Bilevel; keys and scenario are not read."""

    def inner_loss(key, theta, phi, scenario):
        del key, scenario
        gap = phi.params - q.a @ theta
        return gap @ q.h @ gap / 2

    def inner_init(key, scenario):
        del key, scenario
        return TrainState(jnp.asarray(q.start), (), ())

    def inner_step(key, theta, phi, scenario):
        def of_params(params):
            return inner_loss(key, theta, TrainState(params, (), ()), scenario)

        loss, gradient = jax.value_and_grad(of_params)(phi.params)
        return TrainState(phi.params - q.rate * gradient, (), ()), loss

    def outer_loss(key, theta, phi, scenario):
        del key, scenario
        gap = phi.params - q.b
        return gap @ gap / 2 + q.c @ theta

    return Bilevel(inner_init, inner_step, inner_loss, outer_loss)


class Ridge(NamedTuple):
    """inner = |X phi - y|^2 / 2n + l |phi|^2 / 2 in X = theta;  outer = |Z phi - t|^2 / 2m."""

    y: np.ndarray
    z: np.ndarray
    t: np.ndarray
    decay: float

    def solution(self, x: np.ndarray) -> np.ndarray:
        """(X^T X / n + l I)^-1 X^T y / n."""
        n, d = x.shape
        return np.linalg.solve(x.T @ x / n + self.decay * np.eye(d), x.T @ self.y / n)

    def hypergradient(self, x: np.ndarray) -> np.ndarray:
        """-(r v^T + X v phi^T) / n,  r = X phi - y,  v = H^-1 Z^T (Z phi - t) / m."""
        n, d = x.shape
        phi = self.solution(x)
        wanted = self.z.T @ (self.z @ phi - self.t) / len(self.t)
        v = np.linalg.solve(x.T @ x / n + self.decay * np.eye(d), wanted)
        return -(np.outer(x @ phi - self.y, v) + np.outer(x @ v, phi)) / n


def ridge(*, num: int = 8, features: int = 4, goal: int = 5, decay: float = 0.3) -> Ridge:
    """A random instance."""
    rng = np.random.RandomState(3)
    return Ridge(rng.randn(num), rng.randn(goal, features), rng.randn(goal), decay)


def ridge_problem(r: Ridge, *, rate: float = 0.2) -> Bilevel:
    """The same game as a Bilevel, its inner step gradient descent from 0."""

    def inner_loss(key, theta, phi, scenario):
        del key, scenario
        gap = theta @ phi.params - r.y
        return gap @ gap / (2 * len(r.y)) + r.decay / 2 * (phi.params @ phi.params)

    def inner_init(key, scenario):
        del key, scenario
        return TrainState(jnp.zeros(r.z.shape[1]), (), ())

    def inner_step(key, theta, phi, scenario):
        def of_params(params):
            return inner_loss(key, theta, TrainState(params, (), ()), scenario)

        loss, gradient = jax.value_and_grad(of_params)(phi.params)
        return TrainState(phi.params - rate * gradient, (), ()), loss

    def outer_loss(key, theta, phi, scenario):
        del key, theta, scenario
        gap = r.z @ phi.params - r.t
        return gap @ gap / (2 * len(r.t))

    return Bilevel(inner_init, inner_step, inner_loss, outer_loss)


def softmax_regression(
    image: np.ndarray, label: np.ndarray, classes: int, *, decay: float, divisor: float
) -> np.ndarray:
    """argmin over W [D, L] of sum_i CE(x_i W, y_i) / divisor + decay |W|^2 / 2, by Newton steps."""
    x = np.asarray(image, np.float64).reshape(len(label), -1)
    wanted, w = np.eye(classes)[np.asarray(label)], np.zeros((x.shape[1], classes))
    for _ in range(50):
        scores = x @ w
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = x.T @ (p - wanted) / divisor + decay * w
        if np.abs(gradient).max() < 1e-13:
            break
        spread = np.einsum("nk,kl->nkl", p, np.eye(classes)) - np.einsum("nk,nl->nkl", p, p)
        hessian = np.einsum("ni,nj,nkl->ikjl", x, x, spread).reshape(w.size, w.size) / divisor
        w = w - np.linalg.solve(hessian + decay * np.eye(w.size), gradient.ravel()).reshape(w.shape)
    return w


def smooth_victim(features: int = 5, num_classes: int = 3, size: int = 9) -> Victim:
    """A two-layer tanh net in plain jax, in the default float dtype (float64 under x64)."""

    def init(key):
        first, second = jax.random.split(key)
        params = {
            "w": jax.random.normal(first, (size, features)) / 3,
            "v": jax.random.normal(second, (features, num_classes)),
        }
        return Variables(params, {})

    def hidden(variables, image):
        return jnp.tanh(image.reshape(image.shape[0], -1) @ variables.params["w"])

    def apply(variables, image, *, train, key=None):
        del train, key
        return hidden(variables, image) @ variables.params["v"], variables.stats

    return Victim(init, apply, hidden)


def normalized_victim(features: int = 4) -> Victim:
    """`smooth_victim` with a normalization before tanh (eps 1e-5, momentum 0.9), in plain jax."""

    def init(key):
        params = smooth_victim(features).init(key).params
        return Variables(params, {"mean": jnp.zeros(features), "var": jnp.ones(features)})

    def apply(variables, image, *, train, key=None):
        del key
        hidden = image.reshape(image.shape[0], -1) @ variables.params["w"]
        stats = use = variables.stats
        if train:
            use = {"mean": hidden.mean(axis=0), "var": hidden.var(axis=0)}
            stats = {k: 0.9 * stats[k] + 0.1 * use[k] for k in use}
        normal = (hidden - use["mean"][None]) / jnp.sqrt(use["var"][None] + 1e-5)
        return jnp.tanh(normal) @ variables.params["v"], stats

    return Victim(init, apply, apply)


def tiny_scenario(*, num: int = 8, side: int = 3, classes: int = 3, changed: int = 5) -> Scenario:
    """Random float images in [0.2, 0.8] in the default float dtype."""
    rng = np.random.RandomState(1)
    image = jnp.asarray(rng.uniform(0.2, 0.8, (num, side, side, 1)))
    label = jnp.asarray(np.arange(num) % classes, jnp.int32)
    goal = Dataset(image[:4] * 0.9, (label[:4] + 1) % classes)
    return Scenario(Dataset(image, label), goal, jnp.arange(changed, dtype=jnp.int32))


def smooth_generator(hidden: int = 6, size: int = 9, *, batch_norm: bool = True) -> Generator:
    """A two-layer tanh generator in plain jax; BatchNorm without scale, rate 0.1, before tanh."""

    def init(key):
        first, second = jax.random.split(key)
        params = {
            "w": jax.random.normal(first, (size, hidden)),
            "v": jax.random.normal(second, (hidden, size)) / 2,
        }
        stats = {"mean": jnp.zeros(hidden), "var": jnp.ones(hidden)} if batch_norm else {}
        return Variables(params, stats)

    def apply(variables, image, *, train):
        h, stats = image.reshape(image.shape[0], -1) @ variables.params["w"], variables.stats
        if batch_norm:
            mean, var = stats["mean"], stats["var"]
            if train:
                mean, var = jnp.mean(h, axis=0), jnp.var(h, axis=0)
                stats = {
                    "mean": 0.9 * stats["mean"] + 0.1 * mean,
                    "var": 0.9 * stats["var"] + 0.1 * var,
                }
            h = (h - mean[None]) / jnp.sqrt(var[None] + 1e-5)
        return jnp.tanh(jnp.tanh(h) @ variables.params["v"]).reshape(image.shape), stats

    return Generator(init, apply)


def natural_images(num: int, channels: int = 3, side: int = 32) -> np.ndarray:
    """Images of falling spectra, their channels much alike, and some grain; uint8."""
    rng = np.random.default_rng(0)
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) + 1 / side
    waves = rng.normal(size=(num, side, side, channels + 1)) / f[None, :, :, None] ** 1.4
    field = np.fft.fft2(waves, axes=(1, 2)).real
    field = field[..., :1] + 0.12 * field[..., 1:]
    field = 128 + 60 * field / field.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(np.rint(field + 2 * rng.normal(size=field.shape)), 0, 255).astype(np.uint8)


@functools.cache
def photographs(num: int) -> np.ndarray:
    """Crops of 32 x 32 from two photographs of scikit-learn, at a quarter of their size; uint8."""
    rng, found = np.random.default_rng(0), []
    for name in ("china.jpg", "flower.jpg"):
        whole = load_sample_image(name)
        height, width = whole.shape[0] // 4, whole.shape[1] // 4
        small = whole[: 4 * height, : 4 * width].reshape(height, 4, width, 4, 3).mean((1, 3))
        for _ in range(num // 2):
            i, j = rng.integers(0, (height - 31, width - 31))
            found.append(np.rint(small[i : i + 32, j : j + 32]).astype(np.uint8))
    return np.stack(found)
