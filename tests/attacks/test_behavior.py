"""Each attack against random noise of its budget: digits, 576 rows, an MLP, three victim seeds.

Measured, mean accuracy: clean 0.98; noise 0.93 to 0.97; over eight crafting seeds EM 0.62 to 0.70
sample-wise, 0.58 to 0.70 class-wise; over four to six, TAP 0.38 to 0.43, LSP 0.24 to 0.48;
one-pixel with 4 pixels 0.17; over three, DeepConfuse 0.21 to 0.26; over one, GUE 0.61.

Poisons in feature space, 6 among 200 rows on which a last layer is trained anew, four setups, mean
probability of the wanted class at the target: clean 0.005, noise 0.010, bullseye 0.50, collision
0.51 and (proximal, beta 4) 0.53, convex polytope 0.35.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import jaxpoison as jp

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(3)
EPS = 0.3
EPOCHS = 15


@functools.cache
def victim():
    return jp.models.mlp((8, 8, 1), 10, hidden=(64, 64))


@functools.cache
def split():
    train, test = jp.data.digits("train"), jp.data.digits("test")
    train = jp.Dataset(jnp.asarray(train.image[:576]), jnp.asarray(train.label[:576]))
    return jp.Split(train, jp.Dataset(jnp.asarray(test.image), jnp.asarray(test.label)))


@functools.cache
def training():
    single = jp.victims.victim_training(victim(), jp.victims.recipes.small(epochs=EPOCHS), 576)
    return jp.over_restarts(single, 3, chunk=None)


@functools.cache
def scenario():
    """The surrogate in `aux` is trained on the clean rows, from a seed of its own."""
    train = split().train
    phi, _ = jp.run(training(), jax.random.key(5), split(), num_steps=EPOCHS)
    surrogate = jp.tree.take(phi.variables, 0)
    return jp.Scenario(train, train, jnp.arange(576, dtype=jnp.int32), aux=surrogate)


def stored(image):
    return jnp.asarray(np.rint(255 * np.asarray(image)), jnp.uint8)


def retrained(image):
    """Clean test accuracy of fresh victims on the stored images; they fit what they are given."""
    data = jp.Split(jp.Dataset(stored(image), split().train.label), split().test)
    state, info = jp.run(training(), jax.random.key(9), data, num_steps=EPOCHS)
    judgment = jp.victims.judge(victim(), state, info, data.train, data.test)
    assert judgment.train_accuracy.mean > 0.99
    return judgment.final_accuracy


@functools.cache
def crafted(attack, num_steps=1):
    state, _ = jp.run(attack, KEY, scenario(), num_steps=num_steps)
    return attack.poison(state, scenario()).image


@functools.cache
def noise(eps, norm):
    return retrained(crafted(jp.attacks.random_noise(eps=eps, norm=norm)))


def test_noise_does_little_harm():
    for eps, norm in ((EPS, "linf"), (2.4, "l2"), (4, "l0")):
        assert min(noise(eps, norm).values) > 0.9


def test_error_maximizing():
    """The surrogate reads 90 % of the poison as the next class (0.967), and victims learn that."""
    options = {"eps": EPS, "num_classes": 10, "step_size": 0.1 * EPS, "augment": None}
    attack = jp.attacks.error_maximizing(victim(), **options)
    image, data = crafted(attack, 50), scenario()
    predicted = jnp.argmax(jp.victims.logits(victim(), data.aux, image), axis=1)
    assert jnp.mean(predicted == (data.train.label + 1) % 10) >= 0.9
    stored = np.rint(255 * np.asarray(image)) - np.asarray(data.train.image)
    assert np.abs(stored).max() <= 255 * EPS + 0.5
    assert retrained(image).mean < noise(EPS, "linf").mean - 0.4


@functools.cache
def checkpoints():
    """Four networks of one run of twelve epochs, known to the attack."""
    single = jp.victims.victim_training(victim(), jp.victims.recipes.small(epochs=12), 576)
    run = jp.victims.checkpoints_along(single, 4, 12)
    state, _ = jp.run(run, jax.random.key(5), split(), num_steps=12)
    return scenario()._replace(aux=state.variables)


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (jp.attacks.self_ensemble, {}),
        (jp.attacks.feature_alignment, {"variance_reduced": True, "inner_steps": 5}),
    ],
    ids=["sep", "fa_vr"],
)
def test_self_ensemble(factory, options):
    """Most of the poison is read as the class five further on (0.9), and victims learn that."""
    settings = {"eps": EPS, "num_classes": 10, "checkpoints": 4, "step_size": 0.1 * EPS}
    attack, data = factory(victim(), **settings, **options), checkpoints()
    state, _ = jp.run(attack, KEY, data, num_steps=30)
    image = attack.poison(state, data).image
    scores = jax.vmap(lambda v: jp.victims.logits(victim(), v, image))(data.aux)
    hit = jnp.argmax(jnp.mean(scores, axis=0), axis=1) == (data.train.label + 5) % 10
    assert jnp.mean(hit) > 0.8
    assert retrained(image).mean < noise(EPS, "linf").mean - 0.4


def grey(data):
    """Far from the box, where half of a random start would be cut away."""
    image = np.rint(89 + 0.3 * np.asarray(data.image)).astype(np.uint8)
    return jp.Dataset(jnp.asarray(image), data.label)


def test_robust_error_minimizing():
    """On grey digits at eps 0.1. Measured: noise 0.87 to 0.91, REM 0.61 to 0.65."""
    train, test = grey(split().train), grey(split().test)
    data = jp.Scenario(train, train, scenario().index)
    network = jp.models.mlp((8, 8, 1), 10, hidden=(64,), batch_norm=False, logits_norm=False)
    settings = {"adversarial_eps": 0.03, "adversarial_step": 0.02, "adversarial_steps": 2}
    settings |= {"step_size": 0.04, "noise_steps": 5, "draws": 1, "batch_size": 64}
    rem = jp.attacks.robust_error_minimizing(
        network, eps=0.1, steps=150, augment=jp.data.augment.compose(), **settings
    )
    found = []
    for attack in (jp.attacks.random_noise(eps=0.1), rem):
        state, _ = jp.run(attack, KEY, data, num_steps=attack.num_steps or 1)
        poisoned = jp.Dataset(stored(attack.poison(state, data).image), train.label)
        _, info = jp.run(training(), jax.random.key(9), jp.Split(poisoned, test), num_steps=EPOCHS)
        found.append(np.asarray(info.test_accuracy[-1]))
    assert max(found[1]) < min(found[0]) - 0.1, found


def robust(seeds, eps):
    """Training on PGD examples of that radius."""
    recipe = jp.victims.recipes.small(epochs=EPOCHS)
    recipe = dataclasses.replace(recipe, adversarial="pgd", adversarial_eps=eps)
    recipe = dataclasses.replace(recipe, adversarial_steps=3)
    single = jp.victims.victim_training(victim(), recipe, 576)
    return jp.over_restarts(single, seeds, chunk=None)


def test_hypocritical():
    """Adversarially trained victims of radius 0.15 lose the robustness that noise leaves them.

    Measured over three seeds: clean 0.61, noise 0.55, hypocritical 0.24 without augmentation.
    """
    surrogate, _ = jp.run(robust(1, 0.075), jax.random.key(5), split(), num_steps=EPOCHS)
    data = scenario()._replace(aux=jp.tree.take(surrogate.variables, 0))
    attack = jp.attacks.hypocritical(victim(), eps=EPS, augment=None)
    state, info = jp.run(attack, KEY, data, num_steps=50)
    assert info.outer_loss[-1] < 0.1 * info.outer_loss[0]  # CE to the true label falls
    training, found = robust(2, 0.15), []
    for image in (crafted(jp.attacks.random_noise(eps=EPS)), attack.poison(state, data).image):
        poisoned = split()._replace(train=jp.Dataset(stored(image), data.train.label))
        victims, _ = jp.run(training, jax.random.key(9), poisoned, num_steps=EPOCHS)
        options = {"eps": 0.15, "steps": 5}
        one = jp.victims.assess_robust(KEY, victim(), victims.variables, split().test, **options)
        found.append(one.accuracy.values)
    assert max(found[1]) < min(found[0]) - 0.15, found


@pytest.mark.parametrize(
    ("attack", "norm", "eps", "margin"),
    [
        (jp.attacks.lsp(eps=2.4, num_classes=10, patch=2), "l2", 2.4, 0.35),
        (jp.attacks.one_pixel(num_classes=10, num_pixels=4), "l0", 4, 0.6),
    ],
    ids=["lsp", "one_pixel"],
)
def test_poisons_without_a_model(attack, norm, eps, margin):
    assert max(retrained(crafted(attack)).values) < min(noise(eps, norm).values) - margin


def test_convolution():
    """Against the same filter for all classes, as the change has no norm: 0.32 and 0.58."""
    own = retrained(crafted(jp.attacks.convolution(num_classes=10)))
    shared = retrained(crafted(jp.attacks.convolution(num_classes=10, shared=True)))
    assert max(own.values) < min(shared.values) - 0.1


def test_deepconfuse():
    """60 trials of one pass."""
    network = jp.models.create_generator("mlp_generator", (8, 8, 1), hidden=(64, 64))
    options = {"trial_steps": 36, "batch_size": 16, "generator_rate": 1e-3, "select_every": 0}
    attack = jp.attacks.deepconfuse(victim(), network, eps=EPS, **options)
    assert retrained(crafted(attack, 60 * 36)).mean < noise(EPS, "linf").mean - 0.6


@functools.cache
def error_minimizing(noise):
    """(poisons, done before each round, error after it, noise after it) of two crafting seeds."""
    batch_size = {"sample": 16, "class": 32}[noise]
    settings = {"train_steps": 1, "portion": 1.0, "batch_size": batch_size}
    single = jp.attacks.error_minimizing(victim(), eps=EPS, num_classes=10, noise=noise, **settings)
    two = jp.over_restarts(single, 2)
    init_key, steps_key = jax.random.split(KEY)
    state = jax.jit(two.init)(init_key, scenario())
    step, done, error, theta = jax.jit(two.step), [], [], [state.theta]
    for t in range(15):
        done.append(state.done)
        state, info = step(jax.random.fold_in(steps_key, t), state, scenario())
        error.append(info.error)
        theta.append(state.theta)
    image = jax.jit(two.poison)(state, scenario()).image
    return image, *map(np.asarray, (done, error, theta))


@pytest.mark.parametrize("noise_kind", ["sample", "class"])
def test_error_minimizing(noise_kind):
    for image in error_minimizing(noise_kind)[0]:
        assert retrained(image).mean < noise(EPS, "linf").mean - 0.2


@pytest.mark.parametrize("noise_kind", ["sample", "class"])
def test_error_minimizing_fits_in_15_rounds_then_stands_still(noise_kind):
    """Poisoned train accuracy reaches 0.99; until then every round moves the noise, then none."""
    _, done, error, theta = error_minimizing(noise_kind)
    moved = (theta[1:] != theta[:-1]).any(axis=(2, 3, 4, 5))
    fitted = error <= 0.01
    assert fitted.any(axis=0).all()
    before = np.concatenate([np.zeros((1, 2), bool), np.logical_or.accumulate(fitted)[:-1]])
    np.testing.assert_array_equal(done, before)
    np.testing.assert_array_equal(moved, ~before)


def test_gue():
    """Within 20 passes of 18 batches the follower fits its poison, the leader nears log 9."""
    generator = jp.models.create_generator("mlp_generator", (8, 8, 1), hidden=(64, 64))
    settings = {"batch_size": 32, "barrier": 0.5, "generator_rate": 1.0, "select_every": 0}
    attack = jp.attacks.gue(victim(), generator, eps=EPS, **settings)
    state, info = jp.run(attack, KEY, scenario(), num_steps=360)
    assert np.log(9) <= info.outer_loss[-18:].mean() < info.outer_loss[:18].mean()
    assert info.follower_loss[-18:].mean() < 0.7 * info.follower_loss[:18].mean()
    image = attack.poison(state, scenario()).image
    assert retrained(image).mean < noise(EPS, "linf").mean - 0.2


CRAFTING = jp.attacks.Crafting(steps=60, tau=0.05, init="zero")
FEATURE_ATTACKS = {  # name: (factory, its settings)
    "bullseye_polytope": (jp.attacks.bullseye_polytope, {"eps": EPS, "crafting": CRAFTING}),
    "convex_polytope": (jp.attacks.convex_polytope, {"eps": EPS, "crafting": CRAFTING}),
    "feature_collision": (jp.attacks.feature_collision, {"eps": EPS, "step_size": 0.01}),
    "feature_collision_proximal": (
        jp.attacks.feature_collision, {"eps": 1.0, "beta": 4.0, "step_size": 0.01},
    ),
}  # fmt: skip


@functools.cache
def setups():
    """A digit 0 to 3 is wanted of a test image that shows three more."""
    labels = np.asarray(split().test.label)
    train = jax.tree.map(lambda x: x[:200], split().train)
    found = []
    for wanted in range(4):
        shown = np.flatnonzero(labels == wanted + 3)[:1]
        goal = jp.Dataset(split().test.image[shown], jnp.full(1, wanted, jnp.int32))
        rows = np.flatnonzero(np.asarray(train.label) == wanted)[:6]
        found.append(jp.Scenario(train, goal, jnp.asarray(rows, jnp.int32), scenario().aux))
    return found


def intended(attack):
    """Of new last layers, over setups: mean probability of the wanted class at the target, and the
    largest L2 change of an image."""
    found, change = [], []
    for data in setups():
        state, _ = jp.run(attack, KEY, data, num_steps=attack.num_steps or 1)
        stored = np.rint(255 * np.asarray(attack.poison(state, data).image)) / 255
        change.append(np.linalg.norm(stored - data.train.image / 255, axis=(1, 2)).max())
        layer = LogisticRegression(max_iter=300)
        layer.fit(seen(jnp.asarray(stored, jnp.float32)), data.train.label)
        probability = layer.predict_proba(seen(jp.types.as_float(data.goal.image)))
        found.append(probability[0, int(data.goal.label[0])])
    return np.mean(found), max(change)


def seen(image):
    return np.asarray(jax.jit(victim().features)(scenario().aux, image))


@functools.cache
def intended_with_noise():
    return intended(jp.attacks.random_noise(eps=EPS))


@pytest.mark.parametrize("name", FEATURE_ATTACKS)
def test_poisons_in_feature_space(name):
    factory, settings = FEATURE_ATTACKS[name]
    attack = factory(victim(), **settings)
    probability, change = intended(attack)
    least, most = intended_with_noise()
    assert probability > least + 0.2, probability
    assert change <= most  # also of the proximal form, which has no radius
