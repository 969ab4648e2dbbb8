"""Ensembles of followers against python loops over the members, mapped and over four devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import InputError

KEY = jax.random.key(0)


def member(factor=1.0):
    """A member whose phi is its start; gradient = factor theta phi + noise, loss = sum(phi)."""

    def init(key, scenario):
        return jax.random.normal(key, (3,)) * scenario.aux

    def estimate(key, theta, phi, scenario):
        noise = jax.random.normal(key, (3,))
        return factor * theta * phi + noise, phi + scenario.aux, jnp.sum(phi)

    return jp.Hypergrad(init, estimate)


def only_aux(aux):
    return jp.Scenario(None, None, None, aux=aux)  # type: ignore


THETA = jnp.asarray([1.0, -1.0, 0.5])


def by_hand(members, aux, shared):
    """Mean gradient, phi after it and mean loss of (member, its number, its aux), in python."""
    results = []
    for (single, number), own in zip(members, aux, strict=True):
        scenario, key = only_aux(own), jax.random.fold_in(KEY, number)
        phi = single.init(key, scenario)
        results.append(single.estimate(KEY if shared else key, THETA, phi, scenario))
    gradients, phis, losses = map(np.stack, zip(*results, strict=True))
    return gradients.mean(0), phis, losses.mean()


@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("aux_axis", [None, 0])
@pytest.mark.parametrize("shared", [False, True])
def test_an_ensemble_is_the_mean_over_its_members(chunk, aux_axis, shared):
    single, num = member(), 3
    own = jnp.asarray([1.0, 2.0, 3.0]) if aux_axis == 0 else jnp.full(3, 2.0)
    scenario = only_aux(own if aux_axis == 0 else own[0])
    many = jp.over_ensemble(single, num, chunk=chunk, aux_axis=aux_axis, shared=shared)
    phi = many.init(KEY, scenario)
    gradient, after, loss = jax.jit(many.estimate)(KEY, THETA, phi, scenario)
    expected = by_hand([(single, m) for m in range(num)], own, shared)
    np.testing.assert_allclose(gradient, expected[0], rtol=1e-5)
    np.testing.assert_allclose(after, expected[1], rtol=1e-6)
    np.testing.assert_allclose(loss, expected[2], rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_member_m_of_several_networks_is_of_network_m_mod_n(shared):
    kinds = [member(1.0), member(-3.0)]
    many = jp.over_networks(kinds, 5, shared=shared)
    aux = (jnp.asarray([1.0, 3.0, 5.0]), jnp.asarray([2.0, 4.0]))  # of members 0, 2, 4 and 1, 3
    scenario = only_aux(aux)
    phi = many.init(KEY, scenario)
    gradient, after, loss = jax.jit(many.estimate)(KEY, THETA, phi, scenario)
    members = [(kinds[m % 2], m) for m in range(5)]
    expected = by_hand(members, [1.0, 2.0, 3.0, 4.0, 5.0], shared)
    np.testing.assert_allclose(gradient, expected[0], rtol=1e-5)
    np.testing.assert_allclose(after[0], expected[1][::2], rtol=1e-6)
    np.testing.assert_allclose(after[1], expected[1][1::2], rtol=1e-6)
    np.testing.assert_allclose(loss, expected[2], rtol=1e-5)


def layer():
    """A member that is one layer; loss = mean tanh((x + theta + noise) w)^2, phi = w."""

    def estimate(key, theta, phi, scenario):
        noise = (
            jax.random.bits(key).astype(jnp.float32) * 2.0**-32
        )  # quicker to compile than normal

        def loss(theta):
            image = scenario.train.image[scenario.index] + theta + noise
            return jnp.mean(jnp.tanh(image.reshape(len(image), -1) @ phi) ** 2)

        loss, gradient = jax.value_and_grad(loss)(theta)
        return gradient, phi, loss

    return jp.Hypergrad(lambda key, scenario: scenario.aux, estimate)


SPACE = per_sample(Budget("linf", 0.1), init="zero")


@functools.cache
def scenario():
    random = np.random.RandomState(0)
    image = jnp.asarray(random.uniform(size=(10, 8, 8, 1)), jnp.float32)
    train = jp.Dataset(image, jnp.zeros(10, jnp.int32))
    aux = jnp.asarray(random.normal(size=(4, 64, 5)), jnp.float32)
    return jp.Scenario(train, train, jnp.arange(6, dtype=jnp.int32), aux=aux)


def estimate(**options):
    many = jp.over_ensemble(layer(), 4, aux_axis=0, **options)
    theta = SPACE.init(KEY, scenario())
    phi = jax.jit(many.init)(KEY, scenario())
    return jax.device_get(jax.jit(many.estimate)(KEY, theta, phi, scenario()))


def test_members_over_devices_are_mapped_ones_bit_for_bit():
    mapped = estimate()
    for devices in (1, 2, 4):
        spread = estimate(mesh=jp.device_mesh(devices, axis="member"))
        chex.assert_trees_all_equal(spread, mapped)
    assert np.any(mapped[0])


def test_members_of_two_networks_are_spread_too():
    mesh = jp.device_mesh(2, axis="member")
    aux = (jnp.asarray([1.0, 3.0]), jnp.asarray([2.0, 4.0]))
    results = []
    for where in ({}, {"mesh": mesh}):
        many = jp.over_networks([member(1.0), member(-3.0)], 4, **where)
        phi = jax.jit(many.init)(KEY, only_aux(aux))
        results.append(jax.device_get(jax.jit(many.estimate)(KEY, THETA, phi, only_aux(aux))))
    chex.assert_trees_all_equal(*results)


def crafted(wrap, **options):
    many = jp.over_ensemble(layer(), 4, aux_axis=0, **options)
    attack = wrap(jp.attacks.bilevel(SPACE, many, optax.sgd(10.0)))
    state, info, _ = jp.run_chunks(attack, KEY, scenario(), num_steps=2)
    return np.asarray(state.theta), np.asarray(info.outer_loss)


def test_restarts_and_members_share_the_devices_as_one_likes():
    mapped = crafted(lambda a: jp.over_restarts(a, 2))
    restarts = crafted(lambda a: jp.over_devices(a, jp.device_mesh(2), 2))
    members = crafted(lambda a: jp.over_restarts(a, 2), mesh=jp.device_mesh(4, axis="member"))
    chex.assert_trees_all_equal(mapped, restarts, members)
    assert not np.array_equal(mapped[0][0], mapped[0][1])


def test_only_one_of_restarts_and_members_is_spread():
    mesh = jp.device_mesh(2, axis="member")
    with pytest.raises(InputError, match="^members over devices inside restarts over devices; "):
        crafted(lambda a: jp.over_devices(a, jp.device_mesh(2), 2), mesh=mesh)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: jp.over_ensemble(member(), 0), "num = 0; it must be at least 1"),
        (lambda: jp.over_ensemble(member(), 2, chunk=-1), "chunk = -1; "),
        (lambda: jp.over_ensemble(member(), 2, aux_axis=1), "aux_axis = 1; allowed are"),
        (
            lambda: jp.over_ensemble(member(), 6, mesh=jp.device_mesh(4, axis="member")),
            "6 members of one network cannot be spread evenly over 4 devices of axis 'member'",
        ),
        (
            lambda: jp.over_ensemble(member(), 2, mesh=jp.device_mesh(2)),
            "axis = 'member' is not in the mesh; it has restart",
        ),
        (lambda: jp.over_networks([], 2), "networks = 0; it must be at least 1"),
        (
            lambda: jp.over_networks([member(), member()], 1),
            "num = 1 members of 2 networks; each needs at least one",
        ),
        (
            lambda: jp.over_ensemble(member(), 2, aux_axis=0).init(KEY, only_aux(jnp.ones(3))),
            "scenario.aux must be stacked over 2 members on a leading axis; it has an array of "
            "shape (3,)",
        ),
        (
            lambda: jp.over_networks([member()] * 2, 2).init(KEY, only_aux(jnp.ones(2))),
            "scenario.aux is ArrayImpl; it must be a tuple of 2 entries, one per network, each",
        ),
        (
            lambda: jp.over_networks([member()] * 2, 2).init(KEY, only_aux((jnp.ones(2),))),
            "scenario.aux is 1 entries; it must be a tuple of 2 entries",
        ),
        (
            lambda: jp.over_networks([member()] * 2, 3).init(KEY, only_aux((jnp.ones(2),) * 2)),
            "scenario.aux must be stacked over 1 members on a leading axis; it has an array of",
        ),
    ],
)
def test_each_wrong_value_is_one_line(make, line):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
