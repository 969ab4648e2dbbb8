import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.attacks.unlearnable import robust_error_minimizing as robust
from jaxpoison.data import augment
from tests import oracles
from tests.attacks import tiny

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
EPS, NEAR = 0.15, 0.1
RATE, CLIMB = 0.04, 0.03
INDEX = np.array([6, 2, 0, 5, 3])
MOVE = augment.compose(augment.crop(padding=1), augment.flip())
moved = jax.jit(jax.vmap(MOVE, (None, 0)))


def scenario():
    """Eight images, some of them at the box; rows 6, 2, 0, 5, 3 may change."""
    data = oracles.tiny_scenario()
    image = data.train.image.at[2, 0].set(0.0).at[5, 1].set(1.0)
    return data._replace(train=data.train._replace(image=image), index=jnp.asarray(INDEX))


def attack(**options):
    """A rate that falls after the first of two steps."""
    settings = {"eps": EPS, "adversarial_eps": NEAR, "step_size": RATE, "adversarial_step": CLIMB}
    settings |= {"noise_steps": 3, "draws": 2, "adversarial_steps": 2, "augment": MOVE}
    settings |= {"steps": 2, "batch_size": 3, **options}
    return jp.attacks.robust_error_minimizing(oracles.smooth_victim(), **settings)


def uniform(key, shape, eps):
    return eps * np.asarray(jax.random.uniform(key, shape, minval=-1, maxval=1), np.float64)


def moves(key, num):
    """The augmentation of a batch as one matrix per row [B, 9, 9]: it is linear."""
    basis = np.repeat(np.eye(9, dtype=np.float32).reshape(9, 1, 3, 3, 1), num, axis=1)
    return np.asarray(moved(key, basis), np.float64).reshape(9, num, 9).transpose(1, 2, 0)


def applied(matrices, image):
    return np.einsum("nij,nj->ni", matrices, image.reshape(len(image), 9)).reshape(image.shape)


def worst(key, parameters, image, label, inner):
    """A point of the ball around the image: two sign steps up from a random one, or that one."""
    e = np.clip(image + uniform(key, image.shape, NEAR), 0, 1) - image
    for _ in range(2 if inner == "pgd" else 0):
        _, slope, _, _ = tiny.losses_and_gradients(*parameters, image + e, label)
        e = np.clip(np.clip(e + CLIMB * np.sign(slope), -NEAR, NEAR), -image, 1 - image)
    return image + e


def crafted(key, parameters, clean, label, inner):
    """(a) and (b) in plain loops: noise in grey levels, and the last loss [B]."""
    start_key, draws_key = jax.random.split(key)
    d = uniform(start_key, clean.shape, EPS)
    for k in range(3):
        total, losses = np.zeros_like(d), 0
        for j in range(2):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(draws_key, k), j))
            move = moves(keys[0], len(clean))
            view = applied(move, np.clip(clean + d, 0, 1))
            w = worst(keys[1], parameters, view, label, inner)
            loss, slope, _, _ = tiny.losses_and_gradients(*parameters, w, label)
            total += applied(move.transpose(0, 2, 1), slope)
            losses = losses + loss / 2
        d = np.clip(d - RATE * np.sign(total), -EPS, EPS)
    level = np.clip(np.rint(255 * d), -np.floor(255 * EPS), np.floor(255 * EPS))
    return np.clip(level / 255, -clean, 1 - clean), losses


def updated(key, parameters, momentum, image, label, inner):
    """(c): SGD 0.1, momentum 0.9, weight decay 5e-4 on the worst point of a view."""
    augment_key, worst_key, _ = jax.random.split(key, 3)
    view = applied(moves(augment_key, len(image)), np.clip(image, 0, 1))
    w = worst(worst_key, parameters, view, label, inner)
    _, _, *slopes = tiny.losses_and_gradients(*parameters, w, label)
    slopes = [g / len(label) + 5e-4 * p for g, p in zip(slopes, parameters, strict=True)]
    momentum = [g + 0.9 * m for g, m in zip(slopes, momentum, strict=True)]
    return [p - 0.1 * m for p, m in zip(parameters, momentum, strict=True)], momentum


@pytest.mark.parametrize("inner", ["pgd", "random"])
def test_steps_are_plain_loops_and_the_last_crafts_every_row_anew(inner):
    data, single = scenario(), attack(inner=inner)
    x = np.asarray(data.train.image, np.float64)
    y = np.asarray(data.train.label)
    state, step = single.init(KEY, data), jax.jit(single.step)
    np.testing.assert_array_equal(state.theta, 0)
    parameters = [np.asarray(state.phi.params[name], np.float64) for name in "wv"]
    momentum, noise = [0, 0], np.zeros_like(x)
    for number in range(2):
        key = jax.random.key(10 + number)
        _, noise_key, update_key = jax.random.split(key, 3)
        rows = np.asarray(state.order)[3 * number : 3 * number + 3]
        state, info = step(key, state, data)
        d, losses = crafted(jax.random.fold_in(noise_key, 0), parameters, x[rows], y[rows], inner)
        may = np.isin(rows, INDEX)
        noise[rows[may]] = d[may]
        seen = [losses[may]]
        image = x[rows] + noise[rows]
        before = parameters
        parameters, momentum = updated(update_key, before, momentum, image, y[rows], inner)
        if number == 1:  # the rate falls tenfold after 2/5 of the steps, here (at least) one
            parameters = [b + (p - b) / 10 for b, p in zip(before, parameters, strict=True)]
        for ours, theirs in zip("wv", parameters, strict=True):
            np.testing.assert_allclose(state.phi.params[ours], theirs, atol=1e-5)
        if number == 0:
            np.testing.assert_allclose(state.theta, noise[INDEX], atol=1e-6)
            assert float(info.outer_loss) == pytest.approx(np.concatenate(seen).mean(), abs=1e-5)
            continue
        for j, part in enumerate((INDEX[:3], np.append(INDEX[3:], INDEX[-1:]))):
            own = jax.random.fold_in(noise_key, j + 1)
            d, losses = crafted(own, parameters, x[part], y[part], inner)
            count = 3 if j == 0 else 2  # the last row fills the batch up and is not stored
            noise[part[:count]] = d[:count]
            seen.append(losses[:count])
        np.testing.assert_allclose(state.theta, noise[INDEX], atol=1e-6)
        assert float(info.outer_loss) == pytest.approx(np.concatenate(seen).mean(), abs=1e-5)
    image = np.asarray(single.poison(state, data).image)
    np.testing.assert_allclose(image, np.clip(x + noise, 0, 1), atol=1e-6)


def test_the_last_pass_may_be_spread_over_steps():
    """Step 2 trains, and gives rows 6, 2, 0 their noise; step 3 gives 5, 3 theirs, and no more."""
    data, single, spread = scenario(), attack(), attack(finish_steps=2)
    assert (single.num_steps, spread.num_steps) == (2, 3)
    states = []
    for one in (single, spread):
        step, state = jax.jit(one.step), one.init(KEY, data)
        for number in range(2):
            state, _ = step(jax.random.key(10 + number), state, data)
        states.append(state)
    whole, half = states
    np.testing.assert_array_equal(half.theta[:3], whole.theta[:3])
    assert np.any(half.theta[3:] != whole.theta[3:])
    for a, b in zip(*(jax.tree.leaves(one.phi) for one in states), strict=True):
        np.testing.assert_array_equal(a, b)
    end, _ = step(jax.random.key(11), half, data)  # the key that drew them in one step
    np.testing.assert_array_equal(end.theta, whole.theta)
    for a, b in zip(jax.tree.leaves(end.phi), jax.tree.leaves(half.phi), strict=True):
        np.testing.assert_array_equal(a, b)
    again, _ = step(jax.random.key(12), end, data)
    assert np.any(again.theta[:3] != end.theta[:3])
    np.testing.assert_array_equal(again.theta[3:], end.theta[3:])
    with pytest.raises(jp.InputError, match="finish_steps = 3; the rows .* are 2 batches"):
        attack(finish_steps=3).init(KEY, data)


def test_no_step_of_a_spread_pass_is_idle():
    """Five batches over four steps: each has one turn, and each step gives some of them noise."""
    data, spread = scenario(), attack(finish_steps=4, batch_size=1)
    step, state = jax.jit(spread.step), spread.init(KEY, scenario())
    state, _ = step(jax.random.key(1), state, data)
    turns = []
    for number in range(2, spread.num_steps + 1):
        before = np.asarray(state.theta)
        state, info = step(jax.random.key(number), state, data)
        assert float(info.outer_loss) > 0
        turns.append(np.any(before != state.theta, axis=(1, 2, 3)))
    assert [robust.finish_steps_for(n) for n in (10, 2000, 50_000)] == [1, 1, 39]
    assert spread.num_steps == 5 and np.all(np.sum(turns, axis=1) >= 1)
    assert np.all(np.any(turns, axis=0)) and np.all(np.sum(turns[1:], axis=0) <= 1)


def test_bad_values_are_one_line():
    for options, message in [
        ({"steps": 0}, "steps = 0; it must be at least 1"),
        ({"finish_steps": 0}, "finish_steps = 0; it must be at least 1"),
        ({"draws": 0}, "draws = 0; it must be at least 1"),
        ({"adversarial_steps": 0}, "adversarial_steps = 0; it must be at least 1"),
        ({"step_size": 0.0}, "step_size = 0.0; it must be a finite number above 0"),
        ({"adversarial_step": -1.0}, "adversarial_step = -1.0; it must be a finite number above 0"),
        ({"adversarial_eps": 2.0}, "eps = 2 looks like grey levels"),
        ({"inner": "fgsm"}, "inner = 'fgsm'; allowed are pgd, random"),
    ]:
        with pytest.raises(jp.InputError, match=message):
            inspect.unwrap(jp.attacks.robust_error_minimizing)(oracles.smooth_victim(), **options)
    with pytest.raises(jp.InputError, match="scenario.index is empty"):
        attack().init(KEY, scenario()._replace(index=jnp.zeros(0, jnp.int32)))


def test_the_rate_of_the_surrogate_is_the_papers():
    """SGD 0.1, a tenth from step 2000 and 4000 of 5000 on; parameter and gradient are 1."""
    assert jp.attacks.robust_error_minimizing(oracles.smooth_victim()).num_steps == 5000
    tx, one = robust._surrogate_rule(5000), jnp.ones(())
    for count, rate in [(0, 0.1), (1999, 0.1), (2000, 0.01), (3999, 0.01), (4000, 1e-3)]:
        late = [x + count if x.dtype.kind == "i" else x for x in jax.tree.leaves(tx.init(one))]
        state = jax.tree.unflatten(jax.tree.structure(tx.init(one)), late)
        assert float(-tx.update(one, state, one)[0]) == pytest.approx(1.0005 * rate, rel=1e-4)


def test_the_expected_loss_falls_by_more_than_half():
    """300 grey digits, S = 100: CE of the final surrogate under random flips."""
    digits, move = jp.data.digits("train"), augment.flip()
    image = np.rint(89 + 0.3 * digits.image[:300]).astype(np.uint8)  # far from the box
    train = jp.Dataset(jnp.asarray(image), jnp.asarray(digits.label[:300]))
    data = jp.Scenario(train, train, jnp.arange(300, dtype=jnp.int32))
    victim = jp.models.mlp((8, 8, 1), 10, hidden=(64,), batch_norm=False, logits_norm=False)
    options = {"eps": 0.1, "adversarial_eps": 0.03, "augment": move, "batch_size": 64}
    options |= {"steps": 100, "noise_steps": 3, "draws": 2, "adversarial_steps": 2}
    single = jp.attacks.robust_error_minimizing(
        victim, step_size=0.05, adversarial_step=0.02, **options
    )
    state, info = jp.run(single, KEY, data, num_steps=100)
    assert np.all(info.finite) and np.abs(state.theta).max() <= np.float32(0.1)
    assert int(state.count) == 100 and single.num_steps == 100
    image = single.poison(state, data).image

    @jax.jit
    def expected(image):
        def loss(key):
            logits, _ = victim.apply(state.phi.variables, move(key, image), train=False)
            ce = optax.softmax_cross_entropy_with_integer_labels(logits, train.label)
            return jnp.mean(ce)

        return jnp.mean(jax.lax.map(loss, jax.random.split(KEY, 8)))

    clean, poisoned = expected(train.image / 255), expected(image)
    assert poisoned < 0.5 * clean, (clean, poisoned)
