"""The outer loop of targeted attacks: update rules against numpy and PyTorch, the settings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.attacks.crafting import Crafting, craft
from jaxpoison.data import augment
from jaxpoison.types import InputError, Objective

pytestmark = pytest.mark.usefixtures("quick_module")
EPS, STD, STEPS, MEMBERS, TAU, BATCH = 16 / 255, (0.2, 0.25, 0.4), 20, 2, 0.03, 256
IMAGE = np.asarray([[0.02, 0.5, 0.97], [0.3, 0.01, 0.6]]).reshape(2, 1, 1, 3)
START = (np.linspace(-0.9, 0.8, 6) * EPS).reshape(2, 1, 1, 3)
SHIFT = np.asarray([[1.0, -0.5, 2, 0.3, 0.7, -1], [0.2, 0.9, 1, -2, 0.4, 0.1]])
SETTINGS = Crafting(steps=STEPS, tau=TAU, std=STD, batch_size=BATCH, ensemble=MEMBERS)


def gradient(delta, member):
    """Of sum(0.01 (2 + k) cos(40 d + a_k) + 0.1 a_k d), pixel units."""
    shift = SHIFT[member].reshape(2, 1, 1, 3)
    sine = jnp.sin if isinstance(delta, jax.Array) else np.sin
    return 0.01 * (-40 * (2 + member) * sine(40 * delta + shift) + 10 * shift)


def boxed(delta):
    return np.clip(np.clip(delta, -EPS, EPS), -IMAGE, 1 - IMAGE)


def ours(settings, members=range(MEMBERS)):
    """[M, ...] deltas after each step."""
    rule = settings.update_rule(EPS)
    low, high = boxed(-np.ones_like(START)), boxed(np.ones_like(START))

    @jax.jit
    def run(start):
        def step(carry, _):
            delta, state = carry
            mean = sum(gradient(delta, k) for k in members) / len(members)
            updates, state = rule.update(mean, state, delta)
            delta = jnp.clip(optax.apply_updates(delta, updates), low, high)
            return (delta, state), delta

        return jax.lax.scan(step, (start, rule.init(start)), None, length=settings.steps)[1]

    return np.asarray(run(jnp.asarray(START, jnp.float32)))


def by_hand(optimizer, decay):
    """The paper's loop in normalized units, in numpy."""
    std = np.asarray(STD)
    delta, moment, square = START / std, np.zeros_like(START), np.zeros_like(START)
    scale = TAU * BATCH / 512 / MEMBERS
    relative = EPS / std * scale
    deltas = []
    for m in range(STEPS):
        total = sum(gradient(delta * std, k) for k in range(MEMBERS)) * std
        if optimizer in ("sign_adam", "mom_pgd", "pgd"):
            total = np.sign(total)
        factor = 0.1 ** ((m >= 7) + (m >= 12) + (m >= 17)) if decay else 1
        if optimizer.endswith("adam"):
            moment = 0.9 * moment + 0.1 * total
            square = 0.999 * square + 0.001 * total**2
            first, second = moment / (1 - 0.9 ** (m + 1)), square / (1 - 0.999 ** (m + 1))
            delta = delta - scale * factor * first / (np.sqrt(second) + 1e-8)
        elif optimizer.startswith("mom"):
            moment = 0.9 * moment + total
            delta = delta - np.mean(relative) * factor * moment
        else:
            delta = delta - relative * total
        delta = boxed(delta * std) / std
        deltas.append(delta * std)
    return np.stack(deltas)


# torch.optim.Adam and SGD with MultiStepLR, in float64 on normalized pixels: grey levels at the end
TORCH = {
    "sign_adam": [-5.1, -12.5712781, 2.2580449, -0.9690225, 10.9712781, 16.0],
    "adam": [-5.1, -12.586963, 2.3053244, -0.9862222, 10.9493567, 16.0],
    "mom_pgd": [-5.1, -12.0311618, 1.393859, -0.5369295, 10.4311618, 16.0],
    "mom_sgd": [-5.1, -10.0379036, -1.3771921, 1.6386441, 8.7743544, 16.0],
    "pgd": [-5.1, -11.36, -1.12, -0.48, 9.76, 15.2],
    "gd": [-5.1, -9.813483, -2.4657728, 1.6426203, 8.4591722, 14.4851395],
}


@pytest.mark.parametrize("optimizer", TORCH)
def test_every_rule_takes_the_papers_steps(optimizer):
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    deltas = ours(settings)
    np.testing.assert_allclose(255 * deltas[-1].ravel(), TORCH[optimizer], atol=2e-4)
    np.testing.assert_allclose(deltas, by_hand(optimizer, decay=True), atol=1e-6)
    steady = ours(dataclasses.replace(settings, decay=False))
    np.testing.assert_allclose(steady, by_hand(optimizer, decay=False), atol=1e-6)
    fixed = optimizer in ("pgd", "gd")  # they have no schedule
    assert np.array_equal(steady, deltas) == fixed


def updates(settings, gradients):
    """What a rule makes of gradients [M, 1, 1, 1, C], at eps = 0.1."""
    rule = settings.update_rule(0.1)

    def step(state, gradient):
        update, state = rule.update(gradient, state)
        return state, update

    return jax.lax.scan(step, rule.init(gradients[0]), gradients)[1].reshape(len(gradients), -1)


@pytest.mark.parametrize(("steps", "milestones"), [(250, (93, 156, 218)), (50, (18, 31, 43))])
def test_the_rate_falls_by_ten_at_the_milestones(steps, milestones):
    settings = Crafting(steps=steps, optimizer="sign_adam", tau=0.5)
    sizes = np.abs(updates(settings, jnp.ones((steps, 1, 1, 1, 1))))[:, 0]
    expected = 0.5 * 0.1 ** sum(np.arange(steps) >= m for m in milestones)
    np.testing.assert_allclose(sizes, expected, rtol=1e-4)


def test_milestones_that_coincide_count_each():
    settings = Crafting(steps=2, tau=0.5)  # floor(2 / 2.667), floor(2 / 1.6), floor(2 / 1.142)
    sizes = np.abs(updates(settings, jnp.ones((2, 1, 1, 1, 1))))[:, 0]
    np.testing.assert_allclose(sizes, [0.05, 0.0005], rtol=1e-4)


def test_sign_adam_is_sign_descent_with_unbiased_momentum():
    signs = np.random.RandomState(0).choice([-1.0, 1.0], (30, 1, 1, 1, 3))
    sizes = np.random.RandomState(1).uniform(1e-6, 10, signs.shape)
    settings = Crafting(steps=30, tau=0.1, std=(0.2, 0.3, 0.4), decay=False)
    steps = updates(settings, jnp.asarray(signs * sizes, jnp.float32))
    momentum = np.zeros(3)
    for m, sign in enumerate(signs.reshape(30, 3)):
        momentum = 0.9 * momentum + 0.1 * sign
        closed = -0.1 * np.asarray(settings.std) * momentum / (1 - 0.9 ** (m + 1))
        np.testing.assert_allclose(steps[m], closed, atol=1e-6)


@pytest.mark.parametrize(("optimizer", "factor"), [("sign_adam", 2), ("pgd", 2), ("gd", 1)])
def test_an_ensemble_of_one_network_twice_is_that_network(optimizer, factor):
    """Sign rules step 1 / K as far; in linear ones the sum of K gradients makes up for it."""
    twice = dataclasses.replace(SETTINGS, optimizer=optimizer, tau=factor * TAU)
    once = dataclasses.replace(twice, ensemble=1, tau=TAU)
    np.testing.assert_allclose(ours(twice, (0, 0)), ours(once, (0,)), atol=1e-6)


def quadratic(victim):
    """(2 + the network's first bias) times the mean of x^2, x augmented; needs no training."""

    def value_and_grad(key, variables, aim, batch, scenario):
        del key, aim, scenario
        factor = 2 + jax.tree.leaves(variables.params)[0].ravel()[0]
        return jax.value_and_grad(lambda x: factor * jnp.mean(x**2))(batch.image)

    return Objective(lambda key, variables, scenario: (), value_and_grad)


def zeros(victim, *lead):
    shapes = jax.eval_shape(victim.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape)), shapes)


@functools.cache
def gray():
    """Sixty grey images that may all change, and the surrogate."""
    victim = jp.models.mlp((4, 4, 3), 2, hidden=(2,))
    image = jnp.full((60, 4, 4, 3), 0.5)
    train = jp.Dataset(image, jnp.zeros(60, jnp.int32))
    index = jnp.arange(60, dtype=jnp.int32)
    goal = jp.tree.take(train, jnp.arange(1))
    return victim, jp.Scenario(train, goal, index, aux=zeros(victim))


def start(init, eps=0.1):
    victim, scenario = gray()
    settings = Crafting(init=init, std=(0.01, 0.02, 0.03))
    attack = craft(victim, quadratic, eps=eps, crafting=settings)
    return np.asarray(attack.init(jax.random.key(1), scenario).theta)


def test_the_four_starts_of_the_paper():
    inside = np.abs(start("normal")) < 0.1
    assert 0.28 < 1 - inside.mean() < 0.36  # of a normal variable 32 % are beyond one std
    uniform = np.abs(start("uniform"))
    assert uniform.max() < 0.1 and abs(uniform.mean() - 0.05) < 0.003
    assert not start("zero").any()
    spread = start("unit_normal").std(axis=(0, 1, 2))
    np.testing.assert_allclose(spread, [0.01, 0.02, 0.03], rtol=0.1)
    assert np.abs(start("unit_normal", eps=0.005)).max() <= np.float32(0.005)
    filled = start(lambda key, shape, dtype, budget: jnp.full(shape, 0.25, dtype))
    np.testing.assert_array_equal(filled, np.float32(0.1))


def stacked(num, value, victim=None):
    """`num` surrogates of zeros, each with its `value` in its first array."""
    leaves, tree = jax.tree.flatten(zeros(victim or gray()[0], num))
    leaves[0] = leaves[0] + jnp.asarray(value).reshape(num, *[1] * (leaves[0].ndim - 1))
    return jax.tree.unflatten(tree, leaves)


def brightness(key, image):
    """An augmentation that makes the loss noisy: one factor for the whole batch."""
    return image * (1 + jax.random.bits(key).astype(jnp.float32) * 2.0**-32)


def level(key, shape, dtype, budget):
    """One grey level for all pixels of a restart."""
    return jnp.full(shape, brightness(key, 1.0) - 1.5, dtype) * budget.eps


NOISY = Crafting(steps=3, tau=0.01, augment=brightness, init=level, score_draws=8)


@functools.cache
def noisy(num, score="averaged"):
    """(attack over `num` restarts, state, info, scenario)."""
    victim, scenario = gray()
    scenario = scenario._replace(index=jnp.arange(2, dtype=jnp.int32))
    settings = dataclasses.replace(NOISY, score=score)
    attack = jp.over_restarts(craft(victim, quadratic, eps=0.1, crafting=settings), num)
    return attack, *jp.run(attack, jax.random.key(5), scenario, num_steps=3), scenario


def test_the_averaged_score_is_the_mean_loss_on_draws_that_all_restarts_share():
    attack, state, _, scenario = noisy(4)
    assert len(np.unique(state.theta[:, 0, 0, 0, 0])) == 4  # every restart has a start of its own
    keys = jax.vmap(lambda d: jax.random.fold_in(jax.random.key(0), d))(jnp.arange(8))
    # at_surrogate gives batch 0 its own key, whose first half is the augmentation's
    own = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 0))[0])(keys)
    factors = np.asarray([1 + np.float32(jax.random.bits(k)) * 2.0**-32 for k in own])
    images = 0.5 + np.asarray(state.theta)
    by_hand = [np.mean([2 * np.mean((f * x) ** 2) for f in factors]) for x in images]
    scores = jax.jit(attack.score)(state, scenario)
    np.testing.assert_allclose(scores, by_hand, rtol=1e-5)
    chosen = jp.best_of(attack, state, noisy(4)[2], scenario)[1]
    np.testing.assert_array_equal(chosen.theta, state.theta[int(np.argmin(by_hand))])
    assert by_hand[int(np.argmin(by_hand))] <= by_hand[0]


def test_restarts_are_chosen_by_the_last_loss_unless_asked_otherwise():
    attack, state, info, _ = noisy(4, "last")
    assert attack.score is None
    chosen = jp.best_of(attack, state, info)[1]
    winner = int(np.argmin(info.outer_loss[-1]))
    np.testing.assert_array_equal(chosen.theta, state.theta[winner])
    assert winner != int(np.argmin(jax.jit(noisy(4)[0].score)(state, noisy(4)[3])))


def test_several_networks_are_crafted_against_at_once():
    """Their mean gradient is that of one network with their mean factor, and of the same draw."""
    victim, scenario = gray()
    small = jp.models.mlp((4, 4, 3), 2, hidden=(1,))
    other = stacked(1, [4.0], small)
    settings = Crafting(steps=1, optimizer="gd", tau=0.3, init="zero", augment=brightness)
    three = dataclasses.replace(settings, ensemble=3)
    attack = craft([victim, small], quadratic, eps=1.0, crafting=three)
    many, many_info = jp.run(
        attack,
        jax.random.key(0),
        scenario._replace(aux=(stacked(2, [1.0, 7.0]), other)),  # members 0 and 2, member 1
        num_steps=1,
    )
    alone = craft(victim, quadratic, eps=1.0, crafting=settings)
    aux = jax.tree.map(lambda x: x[0], stacked(1, [4.0]))
    one, info = jp.run(alone, jax.random.key(0), scenario._replace(aux=aux), num_steps=1)
    np.testing.assert_allclose(many.theta, one.theta, rtol=1e-5)
    np.testing.assert_allclose(many_info.outer_loss, info.outer_loss, rtol=1e-5)
    alike = craft(victim, quadratic, eps=1.0, crafting=three)
    same = scenario._replace(aux=stacked(3, [1.0, 7.0, 4.0]))
    many, _ = jp.run(alike, jax.random.key(0), same, num_steps=1)
    np.testing.assert_allclose(many.theta, one.theta, rtol=1e-5)


def test_the_score_is_of_the_poisons_where_gradients_are_taken_at_clean_images():
    victim, scenario = gray()
    settings = Crafting(init=level, score="averaged", score_draws=1)
    attack = craft(victim, quadratic, eps=0.1, crafting=settings, clean_gradient=True)
    state = attack.init(jax.random.key(1), scenario)
    by_hand = 2 * np.mean((0.5 + np.asarray(state.theta)) ** 2)
    assert abs(by_hand - 0.5) > 0.01
    np.testing.assert_allclose(jax.jit(attack.score)(state, scenario), by_hand, rtol=1e-5)


def bad_aux(line, aux, networks=1, ensemble=1):
    victim, scenario = gray()
    attack = craft([victim] * networks, quadratic, eps=0.1, crafting=Crafting(ensemble=ensemble))
    with pytest.raises(InputError) as error:
        attack.init(jax.random.key(0), scenario._replace(aux=aux))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_an_aux_of_another_form_is_one_line():
    one = gray()[1].aux
    bad_aux("scenario.aux is not the Variables of its network", one.params)
    bad_aux("scenario.aux has an array of shape (2, ", stacked(2, [0, 0]))
    bad_aux("scenario.aux has an array of shape (2, ", stacked(2, [0, 0]), ensemble=3)
    bad_aux("scenario.aux is Variables; it must be a tuple of 2 entries", one, 2, 2)
    pair = (stacked(2, [0, 0]), one)
    bad_aux("scenario.aux[1] has an array of shape", pair, 2, 3)
    bad_aux("scenario.aux is empty", ())
    with pytest.raises(InputError, match="^ensemble = 1 surrogates of 2 networks; each network"):
        craft([gray()[0]] * 2, quadratic, eps=0.1, crafting=Crafting())
    with pytest.raises(InputError, match="^there is no surrogate network; at least one"):
        craft([], quadratic, eps=0.1, crafting=Crafting())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"steps": 0}, "steps = 0; it must be at least 1"),
        ({"optimizer": "signAdam"}, "optimizer = 'signAdam'; allowed are sign_adam, adam, mom_pgd"),
        ({"tau": 0.0}, "tau = 0.0; it must be a finite number above 0"),
        ({"std": ()}, "std is empty; it must have one number, or one per channel"),
        (
            {"augment": augment.shift_flip},
            "augment = 'shift_flip'; it must be a function (key, image) -> image, as",
        ),
        ({"std": (0.2, 0.0)}, "std = 0.0; it must be a finite number above 0"),
        ({"batch_size": 0}, "batch_size = 0; it must be at least 1"),
        ({"ensemble": 0}, "ensemble = 0; it must be at least 1"),
        ({"score": "best"}, "score = 'best'; allowed are last, averaged"),
        ({"score_draws": 0}, "score_draws = 0; it must be at least 1"),
        ({"init": "randn"}, "init = 'randn'; allowed are normal, uniform, zero, unit_normal"),
    ],
)
def test_each_wrong_setting_is_one_line(settings, line):
    with pytest.raises(InputError) as error:
        Crafting(**settings)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize("init", ["zero", "unit_normal"])
def test_std_has_one_number_or_one_per_channel(init):
    victim, scenario = gray()
    attack = craft(victim, quadratic, eps=0.1, crafting=Crafting(std=(0.2, 0.3), init=init))
    with pytest.raises(InputError, match="^std has 2 numbers; the images have 3 channels$"):
        attack.init(jax.random.key(0), scenario)
