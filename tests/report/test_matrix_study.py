"""The names that `--attacks` and `--defenses` offer are rows and columns that can be started."""

import dataclasses
import functools
import types
from typing import get_args

import jax
import jax.numpy as jnp
import pytest

import jaxpoison as jp
from jaxpoison import victims
from jaxpoison.report import AttackName, DefenseName, usual_attackers, usual_defenses
from jaxpoison.report.identity import identity
from jaxpoison.report.matrix_config import MatrixConfig
from jaxpoison.report.matrix_study import ZooSettings
from jaxpoison.report.preparation import rehearse

KEY, CLASSES, SHAPE, NUM = jax.random.key(0), 3, (16, 16, 3), 300  # over GUE's batch
RECIPE = victims.recipes.small(epochs=4, batch_size=4)
WITH_NETWORK = {"error-maximizing", "self-ensemble", "hypocritical"}


def test_the_help_names_what_is_made():
    known = {}

    def chosen(what, named):
        known[what] = tuple(named)
        return {}

    config = types.SimpleNamespace(eps=0.1, own_recipes=False, chosen=chosen)
    recipe = victims.recipes.small()
    assert usual_attackers(config, None, 10, None, recipe) == {}
    assert usual_defenses(config, (4, 4, 1), 10, recipe) == {}
    assert known == {"attacks": get_args(AttackName), "defenses": get_args(DefenseName)}


def test_epochs_that_are_asked_for_hold_for_the_recipes_of_the_sources():
    def chosen(what, named):
        return {name: named[name] for name in ("adversarial", "ueraser")}

    plain = victims.recipes.small()
    for own, epochs, expected in ((True, None, (100, 200)), (True, 7, (7, 7))):
        config = types.SimpleNamespace(
            eps=0.1, own_recipes=own, epochs=epochs, pgd_steps=2, ueraser_epochs=2, chosen=chosen
        )
        made = usual_defenses(config, (4, 4, 1), 10, plain)
        found = [made[name].recipe.epochs for name in ("adversarial", "ueraser")]
        assert tuple(found) == expected


@dataclasses.dataclass(frozen=True)
class Config(ZooSettings, MatrixConfig):
    """The usual matrix, its generators small."""

    checkpoints: int = 3
    generator_surrogate: str | None = "logistic_regression"
    generator_width: int | None = 2
    deepconfuse_trials: int = 1
    deepconfuse_batch: int = 4
    gue_passes: int = 1
    dvae_width: int = 2
    dvae_batch: int = 4


@functools.cache
def split():
    some = jp.data.synthetic.blobs(KEY, NUM, CLASSES, SHAPE)
    return jp.Split(some, some)


@functools.cache
def usual(own_recipes):
    """(rows, columns)."""
    config = Config(own_recipes=own_recipes)
    create = functools.partial(config.create, "logistic_regression", split(), CLASSES)
    rows = usual_attackers(config, split(), CLASSES, create, RECIPE)
    return rows, usual_defenses(config, SHAPE, CLASSES, RECIPE)


def identities(rows, columns):
    found = {k: identity((one.arm.attack, one.knows and one.knows.victim)) for k, one in
             rows.items()}  # fmt: skip
    return found | {k: identity((one.purifier, one.training)) for k, one in columns.items()
                    if k != "adversarial"}  # fmt: skip


@pytest.mark.parametrize("own_recipes", (True, False))
def test_every_row_can_be_started(own_recipes):
    """With a linear network; traced, not computed."""
    rows, _ = usual(own_recipes)
    assert tuple(rows) == get_args(AttackName)
    assert {name for name, one in rows.items() if one.knows is not None} == WITH_NETWORK
    for name, one in rows.items():
        aux = () if one.knows is None else one.knows.known()
        scenario = jp.Scenario(split().train, split().train, jnp.arange(NUM), aux)
        rehearse({name: one.arm}, scenario, split().test, ())
        if one.knows is not None:
            assert (one.knows.recipe.epochs == RECIPE.epochs) == (not own_recipes)
            training = one.knows.training(NUM)
            jax.eval_shape(training.init, KEY, split())


@pytest.mark.parametrize("own_recipes", (True, False))
def test_every_column_can_be_started(own_recipes, quick_compile):
    """Fits and trainings are traced; purifiers without a fit are computed."""
    _, columns = usual(own_recipes)
    assert tuple(columns) == get_args(DefenseName)
    train = split().train
    for name, one in columns.items():
        if one.purifier is None:
            recipe = one.recipe or RECIPE
            extra = {} if one.training is None else {"defense": one.training}
            victim = jp.models.create("logistic_regression", SHAPE, CLASSES)
            training = victims.victim_training(victim, recipe, NUM, **extra)
            state = jax.eval_shape(training.init, KEY, split())
            after, _ = jax.eval_shape(training.step, KEY, state, split())
            assert jax.tree.structure(after) == jax.tree.structure(state), name
            assert (one.recipe is None) == (name not in ("ueraser", "adversarial"))
        elif one.purifier.num_steps:
            if one.purifier.check is not None:
                one.purifier.check(train)
            state = jax.eval_shape(one.purifier.init, KEY, train)
            after, _ = jax.eval_shape(one.purifier.step, KEY, state, train)
            assert jax.tree.structure(after) == jax.tree.structure(state), name
        else:
            made, _ = jp.defenses.fit_purify(one.purifier, KEY, train)
            assert made.image.shape == train.image.shape and jnp.any(made.image != train.image)


def test_the_cache_tells_them_apart_and_knows_them_again():
    first = identities(*usual(True))
    assert len(set(first.values())) == len(first) == 23
    usual.cache_clear()
    assert identities(*usual(True)) == first
