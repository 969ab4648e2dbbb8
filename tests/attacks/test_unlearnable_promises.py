"""What every unlearnable example promises, of 500 images of 32 x 32: a long gate.

`tests/test_contract.py` has the same of ten images of 8 x 8; here the poison goes through its
folder, and half of the rows may change. Run once, 21 November 2026, jax 0.10.2: all met, 2 to 26 s
each on a busy CPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.data import poisoned

KEY = jax.random.key(4)
EPS = 8 / 255
pytestmark = pytest.mark.slow


@functools.cache
def linear():
    return jp.models.logistic_regression((32, 32, 3), 10)


NETWORK = {"num_classes": 10, "eps": EPS}
ATTACKS = {  # name: (factory, norm, eps)
    "lsp": (lambda: jp.attacks.lsp(eps=1.0, num_classes=10), "l2", 1.0),
    "one_pixel": (lambda: jp.attacks.one_pixel(num_classes=10), "l0", 1),
    "autoregressive": (lambda: jp.attacks.autoregressive(num_classes=10), "l2", 1.0),
    "convolution": (lambda: jp.attacks.convolution(num_classes=10), None, None),
    "error_minimizing": (
        lambda: jp.attacks.error_minimizing(linear(), sweep_steps=2, **NETWORK), "linf", EPS,
    ),
    "error_minimizing_class": (
        lambda: jp.attacks.error_minimizing(linear(), noise="class", **NETWORK), "linf", EPS,
    ),
    "error_maximizing": (
        lambda: jp.attacks.error_maximizing(linear(), **NETWORK), "linf", EPS,
    ),
    "robust_error_minimizing": (
        lambda: jp.attacks.robust_error_minimizing(
            linear(), steps=2, noise_steps=2, draws=2, adversarial_steps=2
        ),
        "linf", EPS,
    ),
    "stable_error_minimizing": (
        lambda: jp.attacks.robust_error_minimizing(
            linear(), inner="random", steps=2, noise_steps=2, draws=2
        ),
        "linf", EPS,
    ),
    "self_ensemble": (
        lambda: jp.attacks.self_ensemble(linear(), checkpoints=2, **NETWORK), "linf", EPS,
    ),
    "hypocritical": (lambda: jp.attacks.hypocritical(linear(), eps=EPS), "linf", EPS),
}  # fmt: skip
MODELFREE = ("lsp", "one_pixel", "autoregressive", "convolution")


@pytest.mark.parametrize("name", ATTACKS)
def test_what_every_attack_promises_of_500_images(name, tmp_path, quick_compile):
    """Half of the rows may change; the budget is read from the stored images."""
    make, norm, eps = ATTACKS[name]
    rng = np.random.RandomState(0)
    label = rng.permutation(500).astype(np.int32) % 10
    clean = jp.Dataset(rng.randint(0, 256, (500, 32, 32, 3)).astype(np.uint8), label)
    index = np.arange(0, 500, 2)
    aux = ()
    if name not in MODELFREE:
        num = 2 if name == "self_ensemble" else 1
        aux = jax.vmap(linear().init)(jax.random.split(KEY, num))
        aux = aux if num > 1 else jp.tree.take(aux, 0)
    data = jp.Scenario(*[jax.tree.map(jnp.asarray, clean)] * 2, jnp.asarray(index, jnp.int32), aux)
    attack = make()
    images = []
    for _ in range(2):
        state, info = jp.run(attack, KEY, data, num_steps=2)
        assert np.all(info.finite)
        images.append(np.asarray(attack.poison(state, data).image))
    np.testing.assert_array_equal(*images)  # the same seed, the same bits
    poisoned.write(
        tmp_path / "p", poisoned=jp.Dataset(images[0], clean.label), clean=clean, index=index,
        attack=name, settings={}, norm=norm, eps=eps, source={"name": "toy_shapes"},
    )  # fmt: skip
    report = poisoned.verify(tmp_path / "p", clean)
    assert report.passed, report
    stored = poisoned.read(tmp_path / "p").dataset
    np.testing.assert_array_equal(stored.label, clean.label)
    np.testing.assert_array_equal(stored.image[1::2], clean.image[1::2])
    change = (np.float64(stored.image) - clean.image).reshape(500, -1)[::2] / 255
    pixels = (change.reshape(250, -1, 3) != 0).any(axis=2).sum(axis=1)
    size = {"linf": np.abs(change).max(1), "l2": np.linalg.norm(change, axis=1), "l0": pixels}
    found = size[norm or "linf"]
    assert found.max() <= (1 if norm is None else eps) + 1e-9
    assert np.median(found) > 0.05 * (1 if norm is None else eps)
