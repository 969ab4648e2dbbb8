"""GUE: the payoff against its definition, and what holds at every step of a short run."""

import dataclasses
import inspect
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpoison as jp
from jaxpoison import victims
from jaxpoison.attacks.unlearnable.gue import GUE, GUE_ADV, payoff
from jaxpoison.hypergrad import generator_game, minibatches, value_function
from jaxpoison.types import Variables
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12), st.integers(0, 11))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_payoff_is_the_worst_wrong_class_and_bounded(entries, own):
    z, own = np.asarray(entries, np.float64), own % len(entries)
    own_loss = float(payoff(jnp.asarray(z, jnp.float32)[None], jnp.array([own]))[0])
    shifted = z - z.max()
    losses = np.log(np.sum(np.exp(shifted))) - shifted
    worst = max(loss for k, loss in enumerate(losses) if k != own)
    np.testing.assert_allclose(own_loss, worst, rtol=1e-5, atol=1e-5)
    assert own_loss >= np.log(len(z) - 1) - 1e-5


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_payoff_reaches_its_bound_where_only_wrong_classes_share(classes):
    label = jnp.array([0, classes - 1])
    own = jax.nn.one_hot(label, classes, dtype=bool)
    best = payoff(jnp.where(own, -jnp.inf, 0.7), label)
    np.testing.assert_allclose(best, np.log(classes - 1), rtol=1e-6, atol=1e-6)
    uniform = payoff(jnp.zeros((2, classes)), label)
    np.testing.assert_allclose(uniform, np.log(classes), rtol=1e-6)


def test_the_gradient_of_the_payoff_is_softmax_minus_the_lowest_wrong_class():
    z, label = jnp.array([[0.3, -2.0, 1.0, -1.0]]), jnp.array([1])
    gradient = jax.grad(lambda z: payoff(z, label)[0])(z)
    np.testing.assert_allclose(gradient, jax.nn.softmax(z) - jnp.array([[0, 0, 0, 1]]), atol=1e-6)


def small(factory=jp.attacks.gue, **options):
    settings = {"eps": 0.1, "batch_size": 4, "inner_steps": 3, "select_every": 0} | options
    return factory(oracles.smooth_victim(), oracles.smooth_generator(), **settings)


def data():
    return oracles.tiny_scenario()._replace(index=jnp.arange(8, dtype=jnp.int32))


def test_every_step_keeps_the_bound_and_says_what_it_saw():
    state, info = jp.run(small(inner_rate=0.01), KEY, data(), num_steps=40)
    size = info.multiplier * info.gap_norm
    assert np.all(size <= (1.5 * info.gap_norm + info.lead_norm) * (1 + 1e-5))
    assert np.all(info.gap > 0) and np.all(info.finite)
    assert np.all(info.outer_loss >= np.log(2) - 1e-6)
    assert len(np.unique(info.outer_loss)) == 40  # another batch, another follower
    assert np.all(info.grad_norm <= size * (1 + 1e-5))  # the generator's share of it
    last = state.phi.phi.last
    assert last.multiplier == info.multiplier[-1] and last.gap == info.gap[-1]


def test_the_generator_poisons_images_it_never_saw():
    """Trained on half of the rows, it is applied to all of them, and to other ones."""
    attack = small(generator_train_fraction=0.5)
    state, _ = jp.run(attack, KEY, data(), num_steps=3)
    assert state.phi.rows.shape == (4,)
    theta, clean = attack.generator(state), data().train.image
    direction, _ = oracles.smooth_generator().apply(theta, clean, train=False)
    image = attack.poison(state, data()).image
    np.testing.assert_allclose(image, np.clip(clean + 0.1 * direction, 0, 1), atol=1e-6)
    other = jp.Dataset(1 - clean[:3], data().train.label[:3])
    unseen = jp.Scenario(other, other, jnp.arange(3, dtype=jnp.int32))
    assert 0.05 < jnp.max(jnp.abs(attack.poison(state, unseen).image - other.image)) <= 0.1 + 1e-6


ATTACKED = {"adversarial_eps": 0.07, "adversarial_step": 0.03, "adversarial_steps": 3}


@pytest.mark.parametrize("adversarial", [False, True])
def test_every_setting_of_a_step_is_where_it_belongs(adversarial):
    """One step of the attack is one of the rule that is put together here."""
    rates = {"inner_rate": 0.05, "generator_rate": 0.7, "follower_rate": 0.2}
    settings = {"inner_steps": 2, "barrier": 20.0, "norm_updates": 12}
    model = victims.learner(oracles.smooth_victim(), optax.sgd(1.0))
    options = rates | settings
    if adversarial:
        options |= ATTACKED | {"adversarial_beta": 4.0, "momentum": 0.0, "weight_decay": 0.0}
        model = victims.trades_learner(
            oracles.smooth_victim(), optax.sgd(1.0), eps=0.07, step_size=0.03, steps=3, beta=4.0
        )
    attack = small(jp.attacks.gue_adv if adversarial else jp.attacks.gue, **options)
    game = generator_game(model, oracles.smooth_generator(), eps=0.1, payoff=payoff)
    rule = value_function(game, inner_tx=optax.adam(0.05), follower_tx=optax.sgd(0.2), **settings)
    state = jax.jit(attack.init)(KEY, data())
    after, info = jax.jit(attack.step)(KEY, state, data())
    estimate = jax.jit(minibatches(rule, batch_size=4).estimate)
    gradient, phi, _ = estimate(KEY, state.theta, state.phi, data())
    params = jax.tree.map(lambda p, g: p - 0.7 * g, state.theta.params, gradient.params)
    chex.assert_trees_all_close(after.theta, Variables(params, gradient.stats), atol=1e-5)
    chex.assert_trees_all_close(after.phi.phi.follower[:2], phi.phi.follower[:2], atol=1e-5)
    assert info.multiplier > 0 and info.grad_norm > 1e-3


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_monitor_is_that_of_the_scripts(monkeypatch, adversarial):
    seen, module = {}, sys.modules[GUE.__module__]

    def kept(attack, recipe, **options):
        seen.update(options, recipe=recipe)
        return attack

    monkeypatch.setattr(module, "monitor", lambda victim, recipe: recipe)
    monkeypatch.setattr(module, "keep_best", kept)
    options = {"select_every": 7, "select_epochs": 3, "holdout": 0.25}
    if adversarial:
        small(jp.attacks.gue_adv, **options, **ATTACKED)
    else:
        small(**options)
    recipe = dataclasses.replace(seen.pop("recipe"), source="")
    assert seen == {"every": 7, "epochs": 3, "holdout": 0.25}
    wanted = victims.Recipe(
        3, 4, 0.01, optimizer="sgd", momentum=0.9, weight_decay=5e-4, drop_last=True
    )
    if adversarial:
        wanted = dataclasses.replace(wanted, adversarial="pgd", **ATTACKED)
    assert recipe == wanted


def test_both_rates_of_gue_adv_fall_where_asked():
    """With momentum and weight decay off, a fall shows at once in the size of the moves."""

    def moves(decay_steps):
        attack = small(
            jp.attacks.gue_adv, decay_steps=decay_steps, momentum=0.0, weight_decay=0.0,
            adversarial_steps=1, inner_rate=0.1, generator_rate=10.0,
        )  # fmt: skip
        state = attack.init(KEY, data())
        step, sizes = jax.jit(attack.step), []
        for t in range(3):
            old = state
            state, info = step(jax.random.fold_in(KEY, t), state, data())
            moved = (
                jax.tree.map(jnp.subtract, part(state), part(old))
                for part in (lambda s: s.theta.params, lambda s: s.phi.phi.follower.params)
            )
            sizes.append([float(jp.tree.norm(m)) for m in moved])
        return np.array(sizes)

    steady, falling = moves((9,)), moves((2,))
    np.testing.assert_allclose(falling[:2], steady[:2], rtol=1e-6)
    np.testing.assert_allclose(falling[2], 0.1 * steady[2], rtol=1e-2)


def test_gue_adv_decays_weights_and_remembers_moves():
    """The generator's first move is -rate (gradient + decay w); the second adds 0.9 of it."""
    options = {"adversarial_steps": 1, "generator_rate": 0.5, "weight_decay": 0.2}
    attack = small(jp.attacks.gue_adv, inner_steps=0, **options)  # no gradient
    state = attack.init(KEY, data())
    first, _ = jax.jit(attack.step)(KEY, state, data())
    second, _ = jax.jit(attack.step)(KEY, first, data())
    w, w1, w2 = (np.asarray(s.theta.params["w"]) for s in (state, first, second))
    np.testing.assert_allclose(w1, w - 0.5 * 0.2 * w, rtol=1e-5)
    np.testing.assert_allclose(w2, w1 - 0.5 * (0.2 * w1 + 0.9 * 0.2 * w), rtol=1e-4, atol=1e-6)


def test_presets_are_the_scripts():
    """50,000 rows are 195 whole batches; a round is 5 passes and 5 epochs."""
    expected = {"eps": 8 / 255, "batch_size": 256, "select_every": 975, "select_epochs": 5}
    assert GUE.options(50_000) == expected
    assert GUE.num_steps(50_000) == 10 * (975 + 5) and GUE.num_steps(50_000, 10) == 2 * 980
    assert GUE_ADV.options(50_000) == expected | {"decay_steps": (23_400, 27_300)}
    assert GUE_ADV.num_steps(50_000) == 30 * 980
    for factory, options in ((jp.attacks.gue, GUE), (jp.attacks.gue_adv, GUE_ADV)):
        defaults = inspect.signature(inspect.unwrap(factory)).parameters
        for name, value in options.options(50_000).items():
            assert name == "eps" or defaults[name].default == value
    with pytest.raises(jp.InputError, match="^num_train = 100; it must be at least 256$"):
        GUE.options(100)
    with pytest.raises(jp.InputError, match="^passes = 7; it must be a multiple of 5$"):
        GUE.num_steps(50_000, 7)


@pytest.mark.parametrize("factory", [jp.attacks.gue, jp.attacks.gue_adv])
def test_selection_is_on_by_default(factory):
    attack = factory(oracles.smooth_victim(), oracles.smooth_generator(), eps=0.1, batch_size=2)
    state = jax.eval_shape(attack.init, KEY, data())
    info = jax.eval_shape(attack.step, KEY, state, data())[1]
    assert {"gap", "multiplier", "held_out", "best"} < set(info._fields)
    theta = jax.eval_shape(attack.generator, state)
    assert jax.tree.structure(theta) == jax.tree.structure(state.attack.theta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8}, "eps = 8 looks like grey levels; write 8/255"),
        ({"batch_size": 0}, "batch_size = 0; it must be at least 1"),
        ({"inner_rate": 0.0}, "inner_rate = 0.0; it must be a finite number above 0"),
        ({"generator_rate": -1.0}, "generator_rate = -1.0; it must be a finite number above 0"),
        ({"select_every": -1}, "select_every = -1; it must be at least 0"),
        (
            {"factory": jp.attacks.gue_adv, "momentum": 1.0},
            "momentum = 1.0; it must be a number at least 0 and below 1",
        ),
        (
            {"factory": jp.attacks.gue_adv, "decay_steps": (0,)},
            "decay_steps = 0; it must be at least 1",
        ),
        (
            {"factory": jp.attacks.gue_adv, "decay_steps": (9, 9)},
            "decay_steps = (9, 9); name each step once",
        ),
        (
            {"factory": jp.attacks.gue_adv, "adversarial_eps": 4},
            "adversarial_eps = 4; it must be a number at least 0 and at most 1",
        ),
        (
            {"factory": jp.attacks.gue_adv, "adversarial_steps": 0},
            "adversarial_steps = 0; it must be at least 1",
        ),
        ({"select_epochs": 0}, "select_epochs = 0; it must be at least 1"),
        ({"follower_rate": 0.0}, "follower_rate = 0.0; it must be a finite number above 0"),
        (
            {"generator_train_fraction": 1.5},
            "generator_train_fraction = 1.5; it must be a number above 0 and at most 1",
        ),
    ],
)
def test_a_bad_setting_is_one_line(options, message):
    with pytest.raises(jp.InputError) as caught:
        small(**options)
    assert str(caught.value) == message
