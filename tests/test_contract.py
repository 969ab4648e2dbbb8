"""One table of attacks, one list of promises; every attack must keep all of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison import checkpoint
from jaxpoison.attacks import error_minimizing
from jaxpoison.types import as_float

SHAPE, CLASSES, NUM = (8, 8, 1), 3, 18
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def release_programs_early(request):
    """The module as a whole would hold over half of the memory maps that a process may have."""
    yield
    if request.node.name.endswith(f"[{list(ADDED)[-1]}]"):
        jax.clear_caches()


@functools.cache
def victim():
    return jp.models.mlp(SHAPE, CLASSES, hidden=(6,))


@functools.cache
def plain():
    return jp.models.mlp(SHAPE, CLASSES, hidden=(4,), batch_norm=False, logits_norm=False)


@functools.cache
def network():
    return jp.models.create_generator("mlp_generator", SHAPE, hidden=(6,))


@functools.cache
def scenario(kept: int = NUM - 4):
    train = jp.data.synthetic.blobs(jax.random.key(1), NUM, num_classes=CLASSES, image_shape=SHAPE)
    goal = jp.data.synthetic.blobs(jax.random.key(2), 6, num_classes=CLASSES, image_shape=SHAPE)
    index = jnp.asarray(np.random.RandomState(0).permutation(NUM)[:kept], jnp.int32)
    return jp.Scenario(train, goal, index, aux=victim().init(jax.random.key(3)))


@functools.cache
def linear():
    return jp.models.logistic_regression(SHAPE, CLASSES)


@functools.cache
def linear_scenario():
    """With a linear classifier as the network that is known: cheap to compile."""
    return scenario()._replace(aux=linear().init(jax.random.key(4)))


@functools.cache
def head():
    return jp.models.logistic_regression((1, 1, 4), CLASSES)


@functools.cache
def head_scenario():
    """The network that is known is a head on the features of `plain`."""
    extractor, own = plain().init(jax.random.key(5)), head().init(jax.random.key(6))
    return scenario()._replace(aux=jp.victims.join_head(extractor, own))


@functools.cache
def checkpoints(network):
    """Two networks are known."""
    keys = jax.random.split(jax.random.key(7), 2)
    return scenario()._replace(aux=jax.vmap(network.init)(keys))


def availability(estimator, eps, space=None):
    """A generic availability attack: minimize minus the clean loss of the trained follower."""
    budget = jp.perturb.Budget("linf", eps)
    space = space or jp.perturb.per_sample(budget)

    def outer_loss(key, theta, phi, scenario):
        del key, theta
        image = scenario.goal.image.astype(jnp.float32) / 255
        scores, _ = victim().apply(phi.variables, image, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, scenario.goal.label)
        return -jnp.mean(losses)

    learner = jp.victims.learner(victim(), optax.sgd(0.1))
    problem = jp.hypergrad.poisoned_training(learner, space, batch_size=6, outer_loss=outer_loss)
    return jp.attacks.bilevel(space, estimator(problem), optax.sign_sgd(eps / 4))


def ensemble(problem):
    return jp.over_ensemble(jp.hypergrad.one_step(problem, learning_rate=0.1), 2)


def class_noise(eps):
    return jp.perturb.class_wise(jp.perturb.Budget("linf", eps), CLASSES, init="uniform")


def selected(eps):
    """Three steps are a round, the poison is then the kept one; two end in its middle."""
    monitor = jp.victims.learner(victim(), optax.sgd(0.1, 0.9))
    recipe = jp.victims.Recipe(2, 5, 0.1, drop_last=True)
    training = jp.victims.training(monitor, recipe)
    noise = jp.attacks.random_noise(eps=eps)
    return jp.attacks.keep_best(noise, training, every=1, epochs=2, holdout=0.2)


def confuse(eps):
    """Plain SGD: of a gradient near zero Adam makes rounding large."""
    settings = {"trial_steps": 2, "batch_size": 5, "learning_rate": 0.1, "generator_rate": 1.0}
    return jp.attacks.deepconfuse(
        victim(), network(), eps=eps, tx=optax.sgd, select_every=0, **settings
    )


SMALL = {"num_classes": CLASSES, "batch_size": 5}
SEP = {**SMALL, "step_size": 0.06}
EM = {**SMALL, "train_steps": 2, "sweep_steps": 2, "step_size": 0.06, "stop_error": 0.0}
REM = {
    "adversarial_eps": 0.05,
    "adversarial_step": 0.02,
    "step_size": 0.06,
    "steps": 3,
    "noise_steps": 2,
    "draws": 2,
    "adversarial_steps": 1,
    "augment": jp.data.augment.flip(),
    "batch_size": 5,
}
GUE = {"batch_size": 5, "inner_steps": 2, "norm_updates": 12, "select_every": 0}
THREE = jp.attacks.Crafting(steps=3)
BATCHES = jp.attacks.Crafting(steps=3, batch_size=6)
META = jp.attacks.MetaCrafting(
    members=2,
    unroll_steps=1,
    recipe=jp.victims.Recipe(2, 9, 0.1, momentum=0.0),
    learning_rate=0.1,
    warmup=0,
)
ATTACKS = {  # name: (factory of eps, norm, eps); None where the image box is the only bound
    "random_noise": (lambda e: jp.attacks.random_noise(eps=e), "linf", 0.1),
    "random_noise_l2": (lambda e: jp.attacks.random_noise(eps=e, norm="l2"), "l2", 1.0),
    "random_noise_l0": (lambda e: jp.attacks.random_noise(eps=e, norm="l0"), "l0", 2),
    "deepconfuse": (confuse, "linf", 0.1),
    "error_minimizing": (lambda e: error_minimizing(victim(), eps=e, **EM), "linf", 0.1),
    "error_minimizing_class": (
        lambda e: error_minimizing(victim(), eps=e, noise="class", **EM), "linf", 0.1,
    ),
    "error_minimizing_legacy": (
        lambda e: error_minimizing(
            victim(), eps=e, random_start=True, legacy_positive_only=True, **EM
        ),
        "linf", 0.1,
    ),
    "frozen_error_minimizing": (
        lambda e: jp.attacks.frozen_error_minimizing(plain(), head(), eps=e, **EM), "linf", 0.1,
    ),
    "error_maximizing": (
        lambda e: jp.attacks.error_maximizing(victim(), eps=e, augment=None, **SMALL),
        "linf", 0.1,
    ),
    "error_maximizing_untargeted": (
        lambda e: jp.attacks.error_maximizing(victim(), eps=e, goal="untargeted", **SMALL),
        "linf", 0.1,
    ),
    "hypocritical": (
        lambda e: jp.attacks.hypocritical(victim(), eps=e, step_size=0.06, batch_size=5),
        "linf", 0.1,
    ),
    "robust_error_minimizing": (
        lambda e: jp.attacks.robust_error_minimizing(linear(), eps=e, **REM), "linf", 0.1,
    ),
    "self_ensemble": (
        lambda e: jp.attacks.self_ensemble(linear(), eps=e, checkpoints=2, **SEP), "linf", 0.1,
    ),
    "feature_alignment": (
        lambda e: jp.attacks.feature_alignment(plain(), eps=e, checkpoints=2, **SEP),
        "linf", 0.1,
    ),
    "feature_alignment_vr": (
        lambda e: jp.attacks.feature_alignment(
            plain(), eps=e, checkpoints=2, variance_reduced=True, inner_steps=2, **SEP
        ),
        "linf", 0.1,
    ),
    "lsp": (lambda e: jp.attacks.lsp(eps=e, num_classes=CLASSES, patch=2), "l2", 1.0),
    "one_pixel": (
        lambda e: jp.attacks.one_pixel(num_classes=CLASSES, num_pixels=e), "l0", 2,
    ),
    "autoregressive": (
        lambda e: jp.attacks.autoregressive(num_classes=CLASSES, eps=e), "l2", 1.0,
    ),
    "convolution": (lambda e: jp.attacks.convolution(num_classes=CLASSES), None, None),
    "gue": (lambda e: jp.attacks.gue(victim(), network(), eps=e, **GUE), "linf", 0.1),
    "gue_adv": (
        lambda e: jp.attacks.gue_adv(
            victim(), network(), eps=e, adversarial_steps=2, decay_steps=(2,), **GUE
        ),
        "linf", 0.1,
    ),
    "gradient_matching": (
        lambda e: jp.attacks.gradient_matching(victim(), eps=e, crafting=THREE), "linf", 0.1,
    ),
    "bullseye_polytope": (
        lambda e: jp.attacks.bullseye_polytope(victim(), eps=e, crafting=THREE), "linf", 0.1,
    ),
    "convex_polytope": (
        lambda e: jp.attacks.convex_polytope(victim(), eps=e, crafting=THREE), "linf", 0.1,
    ),
    "mean_feature_collision": (
        lambda e: jp.attacks.mean_feature_collision(victim(), eps=e, crafting=THREE),
        "linf", 0.1,
    ),
    "feature_collision": (
        lambda e: jp.attacks.feature_collision(victim(), eps=e, batch_size=6), "linf", 0.1,
    ),
    "watermark": (lambda e: jp.attacks.watermark(eps=e, std=0.2), "linf", 0.1),
    "metapoison": (
        lambda e: jp.attacks.metapoison(plain(), eps=e, crafting=META), "linf", 0.1,
    ),
    "metapoison_at_surrogate": (
        lambda e: jp.attacks.metapoison_at_surrogate(
            victim(), eps=e, crafting=BATCHES
        ),
        "linf", 0.1,
    ),
    "bilevel_unrolled": (
        lambda e: availability(lambda p: jp.hypergrad.unrolled(p, steps=2), e), "linf", 0.1,
    ),
    "bilevel_one_step_ensemble": (lambda e: availability(ensemble, e), "linf", 0.1),
    "bilevel_class_wise": (
        lambda e: availability(
            lambda p: jp.hypergrad.unrolled(p, steps=1), e, space=class_noise(e)
        ),
        "linf", 0.1,
    ),
    "keep_best": (selected, "linf", 0.1),
}  # fmt: skip


class Added(NamedTuple):
    """An attack that adds points, one for each row of `index`.

    `make` is of a constraint, which it keeps, unless `constrained` is false; `labels` are those of
    the base rows ("base"), never those ("other"), or any ("free"); `data` is its scenario.
    """

    make: Callable[[jp.perturb.Constraint], jp.Attack]
    labels: str = "base"
    constrained: bool = True
    data: Callable[[], jp.Scenario] = linear_scenario


CORRUPTION = jp.attacks.Corruption(batch_size=6)
GAME = jp.attacks.Stackelberg(
    "", leader_rate=3.0, follower_steps=2, batch_size=9, iterations=2, damping=0.1
)
ADDED = {
    "gradient_canceling": Added(
        lambda c: jp.attacks.gradient_canceling(
            linear(), constraint=c, corruption=CORRUPTION, steps=3
        ),
    ),
    "total_gradient": Added(lambda c: jp.attacks.total_gradient(linear(), game=GAME, constraint=c)),
    "label_flip": Added(
        lambda c: jp.attacks.label_flip(linear(), num_classes=CLASSES, labels="least_likely"),
        labels="other",
        constrained=False,
    ),
    "random_points": Added(
        lambda c: jp.attacks.random_points(num_classes=CLASSES, constraint=c), labels="random"
    ),
    "feature_targeted": Added(
        lambda c: jp.attacks.feature_targeted(
            plain(), head(), constraint=c, cancel_steps=1, match_steps=2, match_rate=0.1
        ),
        data=head_scenario,
    ),
}
NEAR = jp.perturb.Constraint("linf", 0.1)
CHANGING = pytest.mark.parametrize("name", ATTACKS)
ADDING = pytest.mark.parametrize("name", ADDED)
EVERY = pytest.mark.parametrize("name", [*ATTACKS, *ADDED])
ALIKE = {  # a row whose step is that of another one but for one formula or setting: that row
    "error_minimizing_class": "error_minimizing",
    "error_minimizing_legacy": "error_minimizing",
    "frozen_error_minimizing": "error_minimizing",
    "error_maximizing_untargeted": "error_maximizing",
    "convolution": "lsp",
    "hypocritical": "error_maximizing",
    "self_ensemble": "feature_alignment_vr",
    "feature_alignment": "feature_alignment_vr",
    "gue": "gue_adv",
    "mean_feature_collision": "bullseye_polytope",
    "bilevel_class_wise": "bilevel_unrolled",
}
STEPS = pytest.mark.parametrize("name", [name for name in [*ATTACKS, *ADDED] if name not in ALIKE])
"""The rows for the promises about how a step is run, not about what it makes: compiling is dear."""
QUICK = pytest.mark.usefixtures("quick_compile")  # but for the promise of equal bits on devices


@functools.cache
def attack(name, eps=None):
    """`eps` may be a constraint, where points are added."""
    if name in ADDED:
        return ADDED[name].make(NEAR if eps is None else eps)
    make, _, default = ATTACKS[name]
    return make(default if eps is None else eps)


def data_of(name):
    if name in ADDED:
        return ADDED[name].data()
    if name == "self_ensemble":
        return checkpoints(linear())
    if name.startswith("feature_alignment"):
        return checkpoints(plain())
    return head_scenario() if name.startswith("frozen") else scenario()


@functools.cache
def finished(name):
    """The attack after three steps, and its poison."""
    state, info = jp.run(attack(name), KEY, data_of(name), num_steps=3)
    return state, info, poison(attack(name), state, data_of(name))


@functools.partial(jax.jit, static_argnums=0)
def poison(attack, state, data):
    return attack.poison(state, data)


@EVERY
def test_state_and_info_keep_their_form(name):
    data = data_of(name)
    state = jax.eval_shape(attack(name).init, KEY, data)
    again, info = jax.eval_shape(attack(name).step, KEY, state, data)
    chex.assert_trees_all_equal_shapes_and_dtypes(again, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for field in ("outer_loss", "grad_norm"):
        assert getattr(info, field).shape == () and getattr(info, field).dtype == jnp.float32
    assert info.finite.shape == () and info.finite.dtype == bool
    dataset = jax.eval_shape(attack(name).poison, state, data)
    num = len(data.train.label) + (len(data.index) if name in ADDED else 0)
    assert dataset.image.shape == (num, *data.train.image.shape[1:])
    assert dataset.image.dtype == jnp.float32
    assert dataset.label.shape == (num,) and dataset.label.dtype == jnp.int32


@CHANGING
@QUICK
def test_budget_box_labels_and_untouched_rows(name):
    _, info, poisoned = finished(name)
    _, norm, eps = ATTACKS[name]
    data = scenario()
    clean = np.asarray(data.train.image, np.float32) / np.float32(255)
    delta = np.asarray(poisoned.image) - clean
    size = {
        "linf": np.abs(delta).max(axis=(1, 2, 3)),
        "l2": np.sqrt((delta**2).sum(axis=(1, 2, 3))),
        "l0": (np.abs(delta) > 1e-6).any(axis=3).sum(axis=(1, 2)),
    }[norm or "linf"]
    most = 1.0 if norm is None else eps
    assert size.max() <= most + 1e-6
    # the budget is used
    assert size[np.asarray(data.index)].max() > (0.1 if norm is None else 0.5) * most
    assert poisoned.image.min() >= 0 and poisoned.image.max() <= 1
    np.testing.assert_array_equal(poisoned.label, data.train.label)
    untouched = np.setdiff1d(np.arange(NUM), np.asarray(data.index))
    np.testing.assert_array_equal(
        np.rint(255 * poisoned.image[untouched]), data.train.image[untouched]
    )
    assert np.all(info.finite)


@CHANGING
@QUICK
def test_zero_budget_changes_nothing(name):
    if name == "one_pixel":
        pytest.skip("no pixel is refused by the factory; tested there")
    if ATTACKS[name][1] is None:
        pytest.skip("it has no budget")
    nothing = attack(name, 0 if ATTACKS[name][1] == "l0" else 0.0)
    data = data_of(name)
    state, _ = jp.run(nothing, KEY, data, num_steps=1)
    clean = jax.jit(as_float)(data.train.image)
    np.testing.assert_array_equal(poison(nothing, state, data).image, clean)


@ADDING
@QUICK
def test_points_are_added_behind_clean_rows_that_stay(name):
    data, (_, info, poisoned) = data_of(name), finished(name)
    num = len(data.train.label)
    clean = jax.jit(as_float)(data.train.image)
    np.testing.assert_array_equal(poisoned.image[:num], clean)
    np.testing.assert_array_equal(poisoned.label[:num], data.train.label)
    label, base = poisoned.label[num:], data.train.label[data.index]
    if ADDED[name].labels == "base":
        np.testing.assert_array_equal(label, base)
    assert ADDED[name].labels != "other" or not np.any(label == base)
    assert label.min() >= 0 and label.max() < CLASSES
    assert np.all(np.isfinite(poisoned.image)) and np.all(info.finite)


@ADDING
@QUICK
def test_points_are_where_the_constraint_lets_them_be(name):
    if not ADDED[name].constrained:
        pytest.skip("it chooses where its points are")
    data = data_of(name)
    num, base = len(data.train.label), jax.jit(as_float)(data.train.image)[data.index]
    near = finished(name)[2].image[num:]
    size = np.abs(near - base).max()
    assert 0.01 < size <= 0.1 + 1e-6  # they moved
    assert near.min() >= 0 and near.max() <= 1
    nowhere = attack(name, jp.perturb.Constraint("linf", 0.0))
    state, _ = jp.run(nowhere, KEY, data, num_steps=1)
    np.testing.assert_array_equal(poison(nowhere, state, data).image[num:], base)


@ADDING
@QUICK
def test_the_stored_points_verify_and_join_the_clean_set(name, tmp_path):
    data, whole = data_of(name), finished(name)[2]
    num, row = len(data.train.label), ADDED[name]
    norm, eps = ("linf", 0.1) if row.constrained else (None, None)
    jp.data.poisoned.write(
        tmp_path / "p", poisoned=jax.tree.map(lambda x: x[num:], whole), clean=data.train,
        index=np.arange(len(data.index)), source_rows=np.asarray(data.index), attack=name,
        settings={}, norm=norm, eps=eps, source={"name": "blobs"}, rows="added",
        domain="uint8" if row.constrained else "unbounded", labels_changed=row.labels != "base",
    )  # fmt: skip
    report = jp.data.poisoned.verify(tmp_path / "p", data.train)
    assert report.passed, report
    joined = jp.data.with_added(data.train, jp.data.poisoned.read(tmp_path / "p"))
    np.testing.assert_allclose(as_float(jnp.asarray(joined.image)), whole.image, atol=1 / 255)
    np.testing.assert_array_equal(joined.label, whole.label)


@EVERY
@QUICK
def test_the_same_key_gives_the_same_bits_and_nothing_is_compiled_twice(name):
    state, _ = jp.run(attack(name), KEY, data_of(name), num_steps=3)
    before = jp.loops._run._cache_size()
    again, _ = jp.run(attack(name), KEY, data_of(name), num_steps=3)
    assert jp.loops._run._cache_size() == before
    chex.assert_trees_all_equal(again, state)
    chex.assert_trees_all_equal(finished(name)[0], state)


@STEPS
@QUICK
def test_jit_equals_eager(name):
    state = attack(name).init(KEY, data_of(name))
    chex.assert_trees_all_close(state, jax.jit(attack(name).init)(KEY, data_of(name)), atol=1e-5)
    eager = attack(name).step(KEY, state, data_of(name))
    jitted = jax.jit(attack(name).step)(KEY, state, data_of(name))
    chex.assert_trees_all_close(eager, jitted, atol=1e-4, rtol=1e-4)


@STEPS
def test_devices_equal_fewer_restarts_in_a_map_bit_for_bit(name):
    """Three restarts one after another are the first three of four on four devices."""
    three = jp.run(jp.over_restarts(attack(name), 3), KEY, data_of(name), num_steps=2)
    spread = jp.over_devices(attack(name), jp.device_mesh(4), 4)
    state, info = jp.run(spread, KEY, data_of(name), num_steps=2)
    first = jax.tree.map(lambda x: x[:3], state), jax.tree.map(lambda x: x[:, :3], info)
    if name.startswith(("deepconfuse", "gradient_matching")):
        # XLA fuses their step otherwise on a mesh, where some a b + c round once instead of twice.
        chex.assert_trees_all_close(three, first, rtol=1e-4, atol=1e-5)
    else:
        chex.assert_trees_all_equal(three, first)


@STEPS
@QUICK
def test_a_restart_is_a_single_run_and_vmap_agrees(name):
    two = jp.over_restarts(attack(name), 2)
    state = jax.jit(two.init)(KEY, data_of(name))
    after, _ = jax.jit(two.step)(KEY, state, data_of(name))
    single = attack(name)
    key = jax.random.fold_in(KEY, 1)
    one = jax.jit(single.init)(key, data_of(name))
    one_after, _ = jax.jit(single.step)(key, one, data_of(name))
    chex.assert_trees_all_close(jp.tree.take(after, 1), one_after, atol=1e-5)
    side_by_side = jp.over_restarts(attack(name), 2, chunk=None)
    mapped, _ = jax.jit(side_by_side.step)(KEY, state, data_of(name))
    chex.assert_trees_all_close(mapped, after, atol=1e-4, rtol=1e-4)


@STEPS
@QUICK
def test_save_load_continue_is_uninterrupted(name, tmp_path):
    options = {"num_steps": 4, "save_every": 2}
    whole, info, _ = jp.run_chunks(attack(name), KEY, data_of(name), **options)
    half = {"num_steps": 2, "directory": tmp_path}
    jp.run_chunks(attack(name), KEY, data_of(name), **half)
    resumed, resumed_info, _ = jp.run_chunks(
        attack(name), KEY, data_of(name), directory=tmp_path, **options
    )
    chex.assert_trees_all_equal(resumed, whole)
    chex.assert_trees_all_equal(resumed_info, info)
    assert checkpoint.valid_steps(tmp_path / "checkpoints")[-1] == 4


@CHANGING
@QUICK
def test_the_stored_poison_keeps_its_budget(name, tmp_path):
    _, norm, eps = ATTACKS[name]
    data = scenario()
    jp.data.poisoned.write(
        tmp_path / "p", poisoned=finished(name)[2], clean=data.train, index=data.index,
        attack=name, settings={}, norm=norm, eps=eps, source={"name": "blobs"},
    )  # fmt: skip
    report = jp.data.poisoned.verify(tmp_path / "p", data.train)
    assert report.passed, report
