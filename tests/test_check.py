import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import check
from jaxpoison.types import Dataset, InputError, Scenario

NAN, INF = float("nan"), float("inf")
FINITE = "it must be a finite number"


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: check.at_least(1, num=0), "num = 0; it must be at least 1"),
        (lambda: check.at_least(1, a=1, b=-2), "b = -2; it must be at least 1"),
        (lambda: check.at_least(0, num=True), "num = True; it must be a whole number"),
        (lambda: check.at_least(0, num=2.0), "num = 2.0; it must be a whole number"),
        (lambda: check.at_least(0, num="3"), "num = '3'; it must be a whole number"),
        (lambda: check.at_least(0, num=None), "num = None; it must be a whole number"),
        (lambda: check.at_least(5, num=jnp.array(4)), "num = 4; it must be at least 5"),
        (lambda: check.at_least(0, num=np.arange(2)), "num = [0 1]; it must be a whole number"),
        (lambda: check.positive(a=1, b=0.0), f"b = 0.0; {FINITE} above 0"),
        (lambda: check.positive(rate=NAN), f"rate = nan; {FINITE} above 0"),
        (lambda: check.positive(rate=INF), f"rate = inf; {FINITE} above 0"),
        (lambda: check.positive(rate="1"), f"rate = '1'; {FINITE} above 0"),
        (lambda: check.positive(rate=True), f"rate = True; {FINITE} above 0"),
        (lambda: check.number(rate=NAN), f"rate = nan; {FINITE}"),
        (lambda: check.number(least=0, a=jnp.array(-0.5)), f"a = -0.5; {FINITE} at least 0"),
        (lambda: check.number(below=1, a=1), "a = 1; it must be a number below 1"),
        (lambda: check.number(most=1, a=-INF), "a = -inf; it must be a number at most 1"),
        (
            lambda: check.number(above=0, most=1, share=0),
            "share = 0; it must be a number above 0 and at most 1",
        ),
        (lambda: check.fraction(p=1.5), "p = 1.5; it must be a number at least 0 and at most 1"),
        (lambda: check.fraction(p=NAN), "p = nan; it must be a number at least 0 and at most 1"),
        (lambda: check.one_of(("a", "b"), kind="c"), "kind = 'c'; allowed are a, b"),
        (lambda: check.one_of({"a": 1, "b": 2}, kind=["a"]), "kind = ['a']; allowed are a, b"),
        (lambda: check.one_of(("", "b"), main="a"), "main = 'a'; allowed are '', b"),
        (lambda: check.one_of((), main="a"), "main = 'a'; there are none"),
        (lambda: check.one_of((None, 0), axis=1), "axis = 1; allowed are None, 0"),
        (lambda: check.radius("l2", None), f"eps = None; {FINITE} at least 0"),
        (
            lambda: check.number(least=0, a=np.zeros((9, 9))),
            f"a = {' '.join(str(np.zeros((9, 9))).split())[:60]}...; {FINITE} at least 0",
        ),
    ],
)
def test_a_wrong_value_is_one_line(call, line):
    with pytest.raises(jp.InputError) as error:
        call()
    assert str(error.value) == line


def test_right_values_pass():
    check.at_least(2, a=2, b=np.int64(3), c=np.array(2), d=jnp.array(7))
    check.positive(a=1e-30, b=3, c=np.float32(0.5), d=jnp.array(0.5))
    check.fraction(a=0, b=1, c=0.5)
    check.number(above=0, below=1, a=0.5)
    check.one_of(("a", None), x="a", y=None)
    assert check.radius("linf", 8, pixels=False) == 8.0


def test_traced_values_pass():
    @jax.jit
    def f(x, n):
        check.positive(x=x)
        check.fraction(x=x)
        check.at_least(3, n=n)
        return x * n

    assert f(-2.0, 1) == -2


def test_no_rows_to_change_is_one_line():
    data = jp.Dataset(jnp.zeros((2, 1, 1, 1)), jnp.zeros(2, jnp.int32))
    check.some_rows(jp.Scenario(data, data, jnp.arange(1)))
    with pytest.raises(jp.InputError, match="^scenario.index is empty; it must name the rows"):
        check.some_rows(jp.Scenario(data, data, jnp.arange(0)))


def test_the_nearest_word_is_offered():
    assert check.nearest("resnet-18", ["lenet", "resnet18"]) == "; did you mean 'resnet18'?"
    assert check.nearest("zzz", ["lenet", "resnet18"]) == ""


def test_a_foreign_error_becomes_one_short_line():
    assert check.one_line(ValueError("a\n  b")) == "a b"
    assert check.one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert check.one_line(ValueError("x" * 301)) == "x" * 300 + "..."


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (jnp.arange(1, 5), "runs from 1 to 4; allowed are 0 to 3"),
        (jnp.array([-1, 0]), "runs from -1 to 0; allowed are 0 to 3"),
        (jnp.array([2, 2]), "names a row twice"),
        (jnp.array([True, False]), "is bool; it must be an array of whole numbers"),
        (jnp.array([0.0]), "is float32; it must be an array of whole numbers"),
        ([0, 1], "is list; it must be an array of whole numbers"),
    ],
)
def test_rows_of_a_scenario_are_checked_before_a_run(index, message):
    image, label = jnp.zeros((4, 3, 3, 1), jnp.uint8), jnp.zeros(4, jnp.int32)
    data = Scenario(Dataset(image, label), Dataset(image, label), index)
    attack = jp.attacks.random_noise(eps=0.1)
    for loop in (jp.run, jp.run_chunks):
        with pytest.raises(InputError, match=re.escape(message)):
            loop(attack, jax.random.key(0), data, num_steps=1)


def test_a_network_in_the_place_of_its_variables_is_one_line():
    data = Dataset(jnp.zeros((2, 3, 3, 1), jnp.uint8), jnp.zeros(2, jnp.int32))
    network = jp.models.mlp((3, 3, 1), 2, hidden=())
    given = Scenario(data, data, jnp.arange(1), aux=network)
    with pytest.raises(InputError, match="hold functions .a Victim as scenario.aux"):
        jp.run(jp.attacks.random_noise(eps=0.1), jax.random.key(0), given, num_steps=1)


def rows_of(image, label=None):
    """A Dataset of two rows."""
    return Dataset(image, jnp.zeros(len(image), jnp.int32) if label is None else label)


GREY = np.full((2, 3, 3, 1), 200, np.float32)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            jp.Split(rows_of(GREY), rows_of(GREY)),
            "of split.train are float32 grey levels up",
        ),
        (rows_of(jnp.asarray(GREY)), "of the set are float32 grey levels up to 200; divide by 255"),
        (
            jp.Split(rows_of(GREY / 255), rows_of(GREY.astype(int))),
            "of split.test are int64",
        ),
    ],
)
def test_images_in_other_units_are_one_line(data, line):
    with pytest.raises(InputError, match=line):
        check.images(data)


def test_images_and_features_in_their_units_pass():
    outside = np.full((2, 3, 3, 1), 1.5, np.float32)  # an added point may be there
    for image in (GREY.astype(np.uint8), GREY / 255, outside, GREY[:, :1, :1], np.zeros_like(GREY)):
        check.images(rows_of(image))
    jax.eval_shape(lambda x: check.images(rows_of(x)), GREY)


def test_the_loops_look_at_units_and_types():
    data = rows_of(jnp.asarray(GREY))
    attack = jp.attacks.random_noise(eps=0.1)
    with pytest.raises(InputError, match="scenario.train are float32 grey levels"):
        jp.run(attack, jax.random.key(0), Scenario(data, data, jnp.arange(1)), num_steps=1)
    with pytest.raises(InputError, match="^scenario.train is a Split; it must be a Dataset$"):
        split = jp.Split(data, data)
        jp.run(attack, jax.random.key(0), Scenario(split, data, jnp.arange(1)), num_steps=1)


def test_labels_outside_the_classes_are_one_line():
    check.labels(3, labels=jnp.array([0, 2]), none=np.zeros(0))
    jax.eval_shape(lambda y: check.labels(3, labels=y), np.array([7]))
    with pytest.raises(InputError, match="^labels run from -1 to 3; num_classes = 3 allows"):
        check.labels(3, labels=np.array([-1, 3]))
    with pytest.raises(InputError, match="^labels are float32; they must be whole numbers$"):
        check.labels(3, labels=np.ones(2, np.float32))
