"""The feature-targeted attack: its three stages on digits, its gradient, its two inversions.

Digits, extractor 64-128-32, bias-free head, 42 points (3 %), L-BFGS followers: clean 0.985, of the
poisoned features 0.08, of images matched to them 0.97: inversion is the bottleneck.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.perturb import Constraint
from jaxpoison.victims import ToConvergence, convergent_training, extract, join_head
from tests.digits_extractor import digits, extractor

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(5)
HEAD = jp.models.logistic_regression((1, 1, 32), 10, bias=False)
FOLLOWER = convergent_training(HEAD, ToConvergence(1e-3, tolerance=1e-5), 1400)
TARGET = jp.attacks.Corruption(3.0, scale=0.05)
DRAWN = {
    "labels": "balanced",
    "num_classes": 10,
    "corruption": TARGET,
    "weight_decay": 1e-3,
    "cancel_rate": 3.0,
}


def trained(train):
    """(accuracy on clean test features, the head)."""
    split = jp.Split(train, extract(extractor(), digits().test))
    state, info = jp.run(FOLLOWER, KEY, split, num_steps=1)
    return info.test_accuracy[-1], state.variables


@functools.cache
def scenario(num=42):
    head = trained(extract(extractor(), digits().train))[1]
    index = jnp.asarray(np.random.default_rng(0).permutation(1400)[:num], jnp.int32)
    train, known = digits().train, extractor()
    return jp.Scenario(train, train, index, aux=join_head(known.variables, head))


@functools.cache
def matched():
    attack = jp.attacks.feature_targeted(
        extractor().victim, HEAD, cancel_steps=1500, match_steps=200, match_rate=0.02, **DRAWN
    )
    return attack, *jp.run(attack, KEY, scenario(), num_steps=attack.num_steps)


def test_unconstrained_features_reach_the_target():
    attack, state, info = matched()
    target = attack.target(state)
    wanted = jp.victims.accuracy(HEAD, target, extract(extractor(), digits().test))
    poisoned = jp.attacks.poisoned_features(state, scenario())
    reached, head = trained(poisoned)
    assert reached <= 0.12 and abs(reached - wanted) < 0.01
    assert info.residual[1499] < 1e-3 * info.residual[0]
    apart = jax.tree.map(jnp.subtract, head.params, target.params)
    assert jp.tree.norm(apart) < 0.1 * jp.tree.norm(target.params)
    clean = extract(extractor(), digits().train)
    np.testing.assert_allclose(poisoned.image[:1400], clean.image, atol=1e-5)
    assert np.mean(poisoned.label[1400:] != digits().train.label[scenario().index]) > 0.5
    assert set(np.bincount(poisoned.label[1400:], minlength=10)) == {4, 5}  # every class of 42


def test_matching_comes_nearer_and_the_images_do_less_harm():
    attack, state, info = matched()
    error = np.asarray(info.feature_error)
    np.testing.assert_allclose(error[1500], error[1499], rtol=1e-2)  # of the base images
    assert np.all(np.diff(error[1500::10]) < 0)
    poisoned = attack.poison(state, scenario())
    assert poisoned.image.min() >= 0 and poisoned.image.max() <= 1
    zeta = jp.attacks.poisoned_features(state, scenario())
    np.testing.assert_array_equal(poisoned.label, zeta.label)
    stored = jnp.asarray(np.rint(255 * np.asarray(poisoned.image[1400:])), jnp.uint8)
    seen = jp.hypergrad.inversion_error(
        extractor(), HEAD, state.feature.phi, state.feature.theta, stored, scenario()
    )
    added = extract(extractor(), jp.Dataset(stored, poisoned.label[1400:])).image
    apart = np.linalg.norm((added - zeta.image[1400:]).reshape(42, -1), axis=1)
    np.testing.assert_allclose(seen.feature_error, apart.mean(), rtol=1e-4)
    np.testing.assert_allclose(seen.feature_error, error[-1], rtol=0.01)
    np.testing.assert_allclose(seen.residual_images, info.residual[-1], rtol=0.02)
    assert seen.residual_features < 1e-2 < seen.residual_images < info.residual[0]
    base = np.asarray(digits().train.image)[np.asarray(scenario().index)] / 255.0
    away = np.linalg.norm((stored / 255 - base).reshape(42, -1), axis=1)
    np.testing.assert_allclose(seen.distance, away.mean(), rtol=1e-4)
    image = jnp.concatenate([zeta.image[:1400], added])
    assert trained(jp.Dataset(image, poisoned.label))[0] > 0.9


@pytest.mark.usefixtures("x64")
def test_objective_and_gradient_of_matching_against_central_differences():
    rng = np.random.default_rng(0)
    victim = jp.models.mlp((2, 3, 1), 3, hidden=(5,), batch_norm=False, dtype=jnp.float64)
    head = jp.models.logistic_regression((1, 1, 5), 3, dtype=jnp.float64)

    def draw(network):
        variables = jax.eval_shape(network.init, KEY)
        return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), variables)

    train = jp.Dataset(
        jnp.asarray(rng.uniform(size=(9, 2, 3, 1))), jnp.arange(9, dtype=jnp.int32) % 3
    )
    network, own = draw(victim), draw(head)
    index = jnp.array([4, 0, 7, 2, 8], jnp.int32)
    data = jp.Scenario(train, train, index, aux=join_head(network, own))
    attack = jp.attacks.feature_targeted(
        victim, head, corruption=None, cancel_steps=2, cancel_rate=1e-4, match_steps=2, beta=0.3,
        constraint=Constraint("none"), batch_size=2, weight=0.7, weight_decay=0.2,
        normalize="all", match_rate=1e-4,
    )  # fmt: skip
    states, infos, step = [attack.init(KEY, data)], [], jax.jit(attack.step)
    for _ in range(4):
        after, info = step(KEY, states[-1], data)
        states, infos = [*states, after], [*infos, info]
    info, state = infos[-1], states[3]
    for first, read in ((0, lambda x: x.feature.theta.value), (2, lambda x: x.image)):
        one, two, three = map(read, states[first : first + 3])
        moved = [np.abs(two - one).max(), np.abs(three - two).max()]
        np.testing.assert_allclose(moved, [1e-4, 5e-5], rtol=0.02)  # half a cosine each
    weights = [np.asarray(network.params["Dense_0"][name]) for name in ("kernel", "bias")]
    zeta = np.asarray(state.feature.theta.value)[:, 0, 0]
    base = np.asarray(train.image)[np.asarray(index)].reshape(5, -1)

    def features(image):
        return np.maximum(image @ weights[0] + weights[1], 0)

    def objective(image):
        distance = ((features(image) - zeta) ** 2).sum(1)
        return distance + 0.3 * ((image - base) ** 2).sum(1)

    image = np.asarray(state.image).reshape(5, -1)
    np.testing.assert_allclose(info.outer_loss, objective(image).mean(), rtol=1e-10)
    slope = np.stack(
        [(objective(image + h) - objective(image - h)) / 2e-6 for h in 1e-6 * np.eye(6)], axis=1
    )
    np.testing.assert_allclose(info.grad_norm, np.linalg.norm(slope), rtol=1e-7)
    found = features(image)
    np.testing.assert_allclose(
        info.feature_error, np.linalg.norm(found - zeta, axis=1).mean(), rtol=1e-10
    )
    kernel, bias = (np.asarray(own.params["Dense_0"][name]) for name in ("kernel", "bias"))
    clean = features(np.asarray(train.image).reshape(9, -1))
    every = np.concatenate([clean, found])
    label = np.concatenate([np.arange(9) % 3, np.asarray(index) % 3])
    share = np.concatenate([np.full(9, 1 / 9), np.full(5, 0.7 / 5)])[:, None]
    scores = np.exp(every @ kernel + bias)
    wrong = share * (scores / scores.sum(1, keepdims=True) - np.eye(3)[label])
    decay = 0.2 * (1 + 0.7)
    total = every.T @ wrong + decay * kernel, wrong.sum(0) + decay * bias
    size = np.sqrt(sum((part**2).sum() for part in total))
    np.testing.assert_allclose(info.residual, size, rtol=1e-10)
    seen = jp.hypergrad.inversion_error(
        jp.victims.Extractor(victim, network), head, state.feature.phi, state.feature.theta,
        state.image, data, weight=0.7,
    )  # fmt: skip
    np.testing.assert_allclose(seen.residual_images, size, rtol=1e-10)


def test_a_large_beta_gives_the_base_images_back():
    attack = jp.attacks.feature_targeted(
        extractor().victim, HEAD, cancel_steps=5, match_steps=60, beta=1e6, **DRAWN
    )
    state, info = jp.run(attack, KEY, scenario(), num_steps=attack.num_steps)
    added = attack.poison(state, scenario()).image[1400:]
    base = jp.types.as_float(scenario().train.image[scenario().index])
    assert np.abs(added - base).max() < 0.5 / 255 and info.feature_error[-1] > 1


def test_a_decoder_is_asked_once_and_clipped_to_its_constraint():
    decoder = jp.models.mlp_decoder(32, (8, 8, 1), hidden=(8,))
    variables = decoder.init(jax.random.key(3))
    attack = jp.attacks.feature_targeted(
        extractor().victim, HEAD, decoder, inversion="decoder", cancel_steps=5,
        constraint=Constraint("linf", 0.1), labels="base", corruption=None,
        feature_constraint=Constraint("nonnegative"),
    )  # fmt: skip
    data = scenario()._replace(aux=(scenario().aux, variables))
    state, info = jp.run(attack, KEY, data, num_steps=attack.num_steps)
    zeta = jp.attacks.poisoned_features(state, data).image[1400:]
    assert attack.num_steps == 6 and zeta.min() == 0
    made, _ = decoder.apply(variables, zeta[:, 0, 0], train=False)
    base = jp.types.as_float(data.train.image[data.index])
    want = jnp.clip(made, jnp.maximum(base - 0.1, 0), jnp.minimum(base + 0.1, 1))
    poisoned = attack.poison(state, data)
    np.testing.assert_allclose(poisoned.image[1400:], want, atol=1e-6)
    np.testing.assert_array_equal(poisoned.label[1400:], data.train.label[data.index])
    again = extract(extractor(), jp.Dataset(want, poisoned.label[1400:])).image
    apart = np.linalg.norm((again - zeta).reshape(42, -1), axis=1)
    np.testing.assert_allclose(info.feature_error[-1], apart.mean(), rtol=1e-4)
    assert info.grad_norm[-1] == 0


def test_wrong_settings_are_one_clear_line():
    make = jp.attacks.feature_targeted
    parts = extractor().victim, HEAD
    decoder = jp.models.mlp_decoder(32, (8, 8, 1))
    with pytest.raises(jp.InputError, match="inversion = 'direct'; allowed are decoder, matching"):
        make(*parts, inversion="direct")
    with pytest.raises(jp.InputError, match="decoder: inversion = 'decoder' needs one"):
        make(*parts, inversion="decoder")
    with pytest.raises(jp.InputError, match="decoder: inversion = 'matching' has no use for one"):
        make(*parts, decoder)
    with pytest.raises(jp.InputError, match="beta = 0.5; inversion = 'decoder' has no closeness"):
        make(*parts, decoder, inversion="decoder", beta=0.5)
    with pytest.raises(jp.InputError, match="feature_constraint = 'box'; allowed are none, range"):
        make(*parts, feature_constraint=Constraint("box"))
    with pytest.raises(jp.InputError, match="constraint = 'range'; allowed are none, box, linf"):
        make(*parts, constraint=Constraint("range"))
    with pytest.raises(jp.InputError, match="beta = -1; it must be a finite number at least 0"):
        make(*parts, beta=-1)
    with pytest.raises(jp.InputError, match="match_rate = 0; it must be a finite number above 0"):
        make(*parts, match_rate=0)
    with pytest.raises(jp.InputError, match="cancel_steps = 0; it must be at least 1"):
        make(*parts, cancel_steps=0)
    attack = make(*parts)
    empty = scenario()._replace(index=jnp.zeros(0, jnp.int32))
    with pytest.raises(jp.InputError, match="scenario.index is empty"):
        attack.init(KEY, empty)
    with pytest.raises(jp.InputError, match="scenario.aux is a tuple; it must be the Variables of"):
        attack.init(KEY, scenario()._replace(aux=()))
    with pytest.raises(jp.InputError, match="no extractor with a head: join them by join_head"):
        attack.init(KEY, scenario()._replace(aux=extractor().variables))
    decoding = make(*parts, decoder, inversion="decoder")
    with pytest.raises(jp.InputError, match="scenario.aux has no decoder; it must be the pair"):
        decoding.init(KEY, scenario())
