"""Identities of pure functions: equal for what was made alike, other for other content."""

import functools
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.report.identity import code_sha256, identity
from jaxpoison.types import InputError

SHAPE = (8, 8, 1)


def power(exponent, table=None):
    @jax.jit
    def change(image):
        return image**exponent if table is None else image**exponent + table

    return change


MAKERS = {
    "a network": (lambda n: jp.models.create("mlp", SHAPE, 10, hidden=(n,)), 4, 5),
    "an attack on a network": (
        lambda n: jp.attacks.error_maximizing(
            jp.models.create("mlp", SHAPE, 10, hidden=(n,)), eps=0.1, num_classes=10
        ), 4, 5,
    ),
    "a D-VAE": (lambda n: jp.defenses.dvae(jp.models.dvae((8, 8, 1), 10, width=n)), 2, 4),
    "defenses inside a defense": (
        lambda n: jp.defenses.compose(jp.defenses.mixup(alpha=n), jp.defenses.cutout(size=2)),
        1.0, 2.0,
    ),
    "a jitted closure": (power, 2, 3),
    "arrays": (lambda n: power(1, jnp.full(3, n)), 1.0, 2.0),
    "a partial": (lambda n: functools.partial(np.add, n), 1, 2),
    "a key": (jax.random.key, 1, 2),
    "a mapping": (lambda n: {"a": 1, "b": n}, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_equal_things_are_one_and_others_are_not(name):
    make, one, other = MAKERS[name]
    assert identity(make(one)) == identity(make(one)) != identity(make(other))


def test_kinds_names_and_code_count():
    values = [1, 1.0, True, "1", None, (1,), [1], {1: 1}, {1}, np.float32(1), np.float64(1),
              np.zeros((1, 2)), np.zeros((2, 1)), power, lambda x: x + 1, lambda x: x + 2,
              lambda x: x - 1, lambda x=1: x]  # fmt: skip
    assert len({identity(value) for value in values}) == len(values)


def test_what_closes_over_itself_has_one_too():
    def make(step):
        def count(n):
            return n if n < 0 else count(n - step)

        return count

    assert identity(make(1)) == identity(make(1)) != identity(make(2))


def test_an_object_that_nothing_tells_apart_is_refused():
    thing = threading.Lock()
    with pytest.raises(InputError, match="a _thread.lock is part of an attack") as caught:
        identity((1, lambda: thing))
    assert "\n" not in str(caught.value)


def test_another_process_finds_the_same():
    def member(x):
        return x in {"a", "b", "c"}  # a frozenset among the constants

    value = ({"a", "b", "c"}, {"x": functools.partial(np.add, 1)}, np.arange(3), member.__code__)
    words = "import functools, numpy as np; from jaxpoison.report.identity import *; "
    words += "f = lambda x: x in {'c', 'b', 'a'}; add = functools.partial(np.add, 1); "
    words += "value = ({'c', 'b', 'a'}, {'x': add}, np.arange(3), f.__code__); "
    words += "print(identity(value), code_sha256())"
    ran = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [identity(value), code_sha256()]
