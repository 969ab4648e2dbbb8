"""Rounds, scores and the kept poison against a hand-made attack and monitor, in closed form."""

import dataclasses
import inspect
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.attacks import keep_best, selection
from jaxpoison.types import Info, InputError, TrainState, Variables, as_float
from jaxpoison.victims import Recipe, accuracy, learner, recipes, training

KEY = jax.random.key(0)
NUM, CLASSES = 20, 4
ROWS = jnp.arange(NUM, dtype=jnp.int32)
QUALITY = (0.9, 0.5, 0.8, 0.3, 0.7, 0.3, 0.6, 1.0)  # of the poison after so many attack steps


def scenario(label=None):
    """Image r is the grey level r, so that a row is known by its image."""
    image = jnp.broadcast_to(ROWS[:, None, None, None], (NUM, 2, 2, 1)).astype(jnp.uint8)
    train = jp.Dataset(image, ROWS % CLASSES if label is None else label)
    return jp.Scenario(train, train, ROWS)


class CountInfo(NamedTuple):
    outer_loss: jax.Array
    grad_norm: jax.Array
    finite: jax.Array
    count: jax.Array


def counting(quality=QUALITY):
    """Its state counts its steps; pixel (0, 0) of its poison is the quality after so many."""
    table = jnp.asarray(quality, jnp.float32)

    def init(key, scenario):
        return jnp.int32(0)

    def step(key, state, scenario):
        count = state + 1
        return count, CountInfo(-count.astype(jnp.float32), jnp.float32(1), jnp.array(True), count)

    def poison(state, scenario):
        image = as_float(scenario.train.image).at[:, 0, 0].set(table[state])
        return jp.Dataset(image, scenario.train.label)

    def generator(state):
        return Variables({"count": state}, ())

    return jp.Attack(init, step, poison, generator=generator)


class Seen(NamedTuple):
    """What the hand-made monitor writes down of its round."""

    start: jax.Array
    rows: jax.Array
    test_rows: jax.Array
    test_label: jax.Array
    epochs: jax.Array


class Told(NamedTuple):
    outer_loss: jax.Array
    grad_norm: jax.Array
    finite: jax.Array
    train_accuracy: jax.Array
    test_accuracy: jax.Array


def reading(sound=lambda quality: quality < 2):
    """A monitor whose accuracy is the quality it is shown; NaN or not finite as `sound` says."""

    def row(image):
        return jnp.round(255 * as_float(image)[:, 1, 1, 0]).astype(jnp.int32)

    def init(key, split):
        none = jnp.full((split.test.label.shape[0],), -1)
        start = jax.random.uniform(key)
        return TrainState(Seen(start, jnp.zeros(NUM, bool), none, none, jnp.int32(0)), (), ())

    def step(key, phi, split):
        quality = split.train.image[:, 0, 0, 0].mean()
        seen = phi.params.rows.at[row(split.train.image)].set(True)
        test = row(split.test.image), split.test.label
        one, yes = jnp.float32(1), sound(quality)
        params = Seen(phi.params.start, seen, *test, phi.params.epochs + 1)
        return TrainState(params, (), ()), Told(one, one, yes, one, quality)

    return jp.Training(init, step)


def stepped(process, data, steps):
    """(states after each step, infos) of `run`, one by one."""
    init_key, steps_key = jax.random.split(KEY)
    state, step = process.init(init_key, data), jax.jit(process.step)
    states, infos = [], []
    for t in range(steps):
        state, info = step(jax.random.fold_in(steps_key, t), state, data)
        states.append(state)
        infos.append(info)
    return states, infos


def test_the_best_round_is_kept_when_the_poison_gets_better_and_then_worse():
    kept = keep_best(counting(), reading(), every=1, epochs=2)
    total = selection.num_steps(7, every=1, epochs=2)
    state, info = jp.run(kept, KEY, scenario(), num_steps=total)
    assert total == 21
    scores = np.repeat(np.float32(QUALITY[1:]), 3)[:-2]
    np.testing.assert_allclose(info.held_out, [1, 1, *scores], rtol=1e-6)
    np.testing.assert_allclose(info.best, np.minimum.accumulate([1, 1, *scores]), rtol=1e-6)
    assert info.held_out.dtype == info.best.dtype == jnp.float32
    poisoned = kept.poison(state, scenario())
    np.testing.assert_allclose(poisoned.image[:, 0, 0, 0], QUALITY[3], rtol=1e-6)
    assert int(state.best) == 3  # of equal scores (3 and 5 steps) the first
    assert int(state.attack) == 7 and int(kept.generator(state).params["count"]) == 3


def test_the_info_has_the_attack_s_own_fields_and_repeats_them_while_watching():
    kept = keep_best(counting(), reading(), every=2, epochs=3)
    _, info = jp.run(kept, KEY, scenario(), num_steps=10)
    assert info._fields == ("outer_loss", "grad_norm", "finite", "count", "held_out", "best")
    np.testing.assert_array_equal(info.count, [1, 2, 2, 2, 2, 3, 4, 4, 4, 4])
    np.testing.assert_array_equal(info.outer_loss, -np.float32(info.count))
    assert np.all(info.finite)


def test_before_the_first_score_the_poison_is_the_current_one():
    kept = keep_best(counting(), reading(), every=2, epochs=2)
    states, infos = stepped(kept, scenario(), 4)
    for state, count in zip(states, (1, 2, 2, 2), strict=True):
        assert int(kept.generator(state).params["count"]) == count
        pixel = kept.poison(state, scenario()).image[0, 0, 0, 0]
        np.testing.assert_allclose(pixel, QUALITY[count], rtol=1e-6)
    assert [float(info.best) for info in infos[:3]] == [1, 1, 1]
    assert keep_best(walk(), reading(), every=2, epochs=2).generator is None


def walk():
    """theta <- 0.5 theta + noise: reads its key."""

    def step(key, state, scenario):
        state = 0.5 * state + jax.random.normal(key, (3,))
        size = jnp.linalg.norm(state)
        return state, Info(size, size, jnp.isfinite(size))

    def poison(state, scenario):
        return jp.Dataset(as_float(scenario.train.image), scenario.train.label)

    return jp.Attack(lambda key, scenario: jax.random.normal(key, (3,)), step, poison)


def test_the_first_round_is_the_attack_alone():
    alone, info = jp.run(walk(), KEY, scenario(), num_steps=4)
    kept = keep_best(walk(), reading(), every=4, epochs=1)
    state, same = jp.run(kept, KEY, scenario(), num_steps=4)
    np.testing.assert_allclose(state.attack, alone, rtol=1e-6)
    np.testing.assert_allclose(same.outer_loss, info.outer_loss, rtol=1e-6)


def test_no_monitor_ever_trains_on_a_held_out_row_and_each_round_has_a_fresh_one():
    kept = keep_best(counting(), reading(), every=1, epochs=2, holdout=0.3, seed=4)
    states, _ = stepped(kept, scenario(), 9)
    rest, held = selection.held_out_rows(NUM, 0.3, seed=4)
    assert len(held) == 6 and sorted([*rest.tolist(), *held.tolist()]) == list(range(NUM))
    other = selection.held_out_rows(NUM, 0.3, seed=5)[1]
    assert set(held.tolist()) != set(other.tolist())
    watching = [state.monitor.params for i, state in enumerate(states) if i % 3]
    for i, seen in enumerate(watching):
        np.testing.assert_array_equal(np.flatnonzero(seen.rows), np.sort(rest))
        np.testing.assert_array_equal(seen.test_rows, held)
        np.testing.assert_array_equal(seen.test_label, held % CLASSES)
        assert int(seen.epochs) == i % 2 + 1
    starts = [float(seen.start) for seen in watching]
    assert starts[0::2] == starts[1::2] and len(set(starts)) == 3


def test_a_label_map_judges_by_the_wanted_class():
    eta = (1, 2, 3, 0)
    kept = keep_best(counting(), reading(), every=1, epochs=1, label_map=eta)
    states, infos = stepped(kept, scenario(), 6)
    held = selection.held_out_rows(NUM, 0.1)[1]
    np.testing.assert_array_equal(
        states[1].monitor.params.test_label, np.asarray(eta)[np.asarray(held) % CLASSES]
    )
    failures = [1 - q for q in QUALITY[1:4]]  # the monitor reports the share that obeys
    np.testing.assert_allclose([info.held_out for info in infos[1::2]], failures, rtol=1e-6)
    assert int(states[-1].best) == 2  # 0.8 obey


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_monitor_that_diverges_says_nothing(rounds):
    """The best quality, 0.3 after 3 steps, is lost; before that nothing but the start is."""
    lost = rounds == 1
    sound = (lambda q: q > 0.6) if lost else (lambda q: jnp.abs(q - 0.3) > 0.01)
    kept = keep_best(counting(), reading(sound), every=1, epochs=1)
    states, infos = stepped(kept, scenario(), 2 * rounds)
    assert float(infos[-1].held_out) == 1 and bool(infos[-1].finite)
    np.testing.assert_allclose(infos[-1].best, 1 if lost else QUALITY[1], rtol=1e-6)
    assert int(kept.generator(states[-1]).params["count"]) == 1  # current; best of 0.5 and 0.8


def test_weights_that_are_nan_after_the_last_update_count_as_diverged():
    def ends_badly(key, phi, split):
        phi, info = calm.step(key, phi, split)
        return phi._replace(params=phi.params._replace(start=jnp.float32(jnp.nan))), info

    calm = reading()
    kept = keep_best(counting(), jp.Training(calm.init, ends_badly), every=1, epochs=1)
    state, info = jp.run(kept, KEY, scenario(), num_steps=2)
    assert info.held_out.tolist() == [1, 1] and jnp.isinf(state.best_score)


@pytest.mark.parametrize("chunk", [1, None])
def test_side_by_side_too_no_step_pays_for_the_other_half_of_a_round(chunk):
    taken, base = [], counting()

    def step(key, state, scenario):
        jax.debug.callback(taken.append, state)
        return base.step(key, state, scenario)

    kept = keep_best(base._replace(step=step), reading(), every=2, epochs=3)
    state, info = jp.run(jp.over_restarts(kept, 3, chunk=chunk), KEY, scenario(), num_steps=10)
    jax.block_until_ready(state)
    assert sorted(map(int, taken)) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    np.testing.assert_allclose(info.best[-1], [QUALITY[4]] * 3, rtol=1e-6)


def test_no_branch_carries_the_attack_which_it_would_copy():
    size = 10**6

    def step(key, state, scenario):
        state = 0.5 * state + jax.random.uniform(key)
        return state, Info(state[0], state[0], jnp.array(True))

    big = jp.Attack(lambda key, scenario: jnp.zeros(size), step, walk().poison)
    kept = keep_best(big, reading(), every=2, epochs=2)
    state = jax.eval_shape(kept.init, KEY, scenario())
    text = jax.jit(kept.step, donate_argnums=1).lower(KEY, state, scenario()).compile().as_text()
    branches = [line for line in text.splitlines() if " conditional(" in line]
    assert branches and not any(f"f32[{size}]" in line for line in branches)


SHAPE = (4, 4, 1)
VICTIM = jp.models.mlp(SHAPE, 3, hidden=(8,))
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.5, drop_last=True)


def blobs(num=40):
    train = jp.data.synthetic.blobs(jax.random.key(1), num, num_classes=3, image_shape=SHAPE)
    return jp.Scenario(train, train, jnp.arange(num, dtype=jnp.int32))


def monitored(**options):
    attack = jp.attacks.random_noise(eps=0.3)
    settings = {"every": 1, "epochs": 2, "holdout": 0.25, **options}
    return keep_best(attack, training(learner(VICTIM, optax.sgd(0.5)), RECIPE), **settings)


def test_a_real_monitor_is_trained_and_judged_as_by_hand(quick_compile):
    data = blobs()
    attack = jp.attacks.random_noise(eps=0.3)
    single = training(learner(VICTIM, optax.sgd(0.5)), RECIPE)
    states, infos = stepped(monitored(), data, 3)
    rest, held = selection.held_out_rows(40, 0.25)
    poisoned = attack.poison(states[0].attack, data)
    test = jp.tree.take(data.train, held)
    split = jp.Split(jp.tree.take(poisoned, rest), test)
    steps_key = jax.random.split(KEY)[1]
    start_key, first = jax.random.split(jax.random.fold_in(steps_key, 1))
    second = jax.random.split(jax.random.fold_in(steps_key, 2))[1]
    phi = single.init(start_key, split)
    for key in (first, second):
        phi, _ = jax.jit(single.step)(key, phi, split)
    chex.assert_trees_all_close(states[2].monitor, phi, atol=1e-5)
    wanted = float(accuracy(VICTIM, phi.variables, test))
    assert float(infos[2].held_out) == wanted and 0 < wanted <= 1


def test_a_monitor_is_trained_by_its_recipe_whatever_the_number_of_rows(quick_compile):
    """Two updates of SGD 0.1, momentum 0.9, decay 0.01; an adversarial one differs."""
    recipe = Recipe(1, 8, 0.1, momentum=0.9, weight_decay=0.01)
    rule = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))
    wanted = training(learner(VICTIM, rule), recipe)
    hard = dataclasses.replace(recipe, adversarial="pgd", adversarial_eps=0.2)
    ends = []
    for process in (selection.monitor(VICTIM, recipe), wanted, selection.monitor(VICTIM, hard)):
        split = jp.Split(blobs(16).train, blobs(8).train)
        ends.append(jp.run(process, KEY, split, num_steps=1)[0].params)
    chex.assert_trees_all_close(ends[0], ends[1], atol=1e-6)
    assert any(
        not np.allclose(a, b, atol=1e-3)
        for a, b in zip(*map(jax.tree.leaves, ends[1:]), strict=True)
    )


def test_best_of_goes_by_the_held_out_score():
    """Restart r's poison has quality (0.6, 0.2, 0.4)[r], and its loss falls the other way."""
    table = jnp.asarray([0.6, 0.2, 0.4])

    def init(key, data):
        return jnp.argmin(jnp.abs(jnp.asarray([0.1, 0.5, 0.9]) - jax.random.uniform(key)))

    def step(key, state, data):
        return state, Info(table[state], table[state], jnp.array(True))

    attack = jp.Attack(init, step, counting(table).poison)
    eta = tuple(range(CLASSES))  # obeyed by `quality`: the largest fails least
    repeated = jp.over_restarts(keep_best(attack, reading(), every=1, epochs=1, label_map=eta), 8)
    state, info = jp.run(repeated, KEY, scenario(), num_steps=2)
    assert set(np.asarray(state.attack).tolist()) == {0, 1, 2}
    single, best = jp.best_of(repeated, state, info)
    assert single is repeated.single and int(best.attack) == 0


def bad(**options):
    settings = {"every": 1, "epochs": 1, **options}
    attack = settings.pop("attack", counting())
    return inspect.unwrap(keep_best)(attack, reading(), **settings)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: bad(every=0), "every = 0; it must be at least 1"),
        (lambda: bad(epochs=0), "epochs = 0; it must be at least 1"),
        (lambda: bad(every=1.5), "every = 1.5; it must be a whole number"),
        (lambda: bad(holdout=0.0), "holdout = 0.0; it must be a number above 0 and below 1"),
        (lambda: bad(holdout=1.0), "holdout = 1.0; it must be a number above 0 and below 1"),
        (lambda: bad(label_map=(1, -1)), "label_map = -1; it must be at least 0"),
        (
            lambda: bad(attack=jp.over_restarts(counting(), 2)),
            "keep_best takes one attack; write over_restarts(keep_best(...), num)",
        ),
        (
            lambda: selection.monitor(VICTIM, recipes.gue()),
            "a monitor's rate is constant; the recipe has schedule = 'step' and warmup = 0",
        ),
        (lambda: selection.num_steps(0, every=1, epochs=1), "rounds = 0; it must be at least 1"),
        (
            lambda: jp.run(bad(holdout=0.02), KEY, scenario(), num_steps=1),
            "holdout 0.02 of 20 rows leaves one of the two parts empty",
        ),
        (
            lambda: jp.run(bad(attack=bad()), KEY, scenario(), num_steps=1),
            "the attack's info has best, held_out: it is selected twice",
        ),
        (
            lambda: jp.run(monitored(holdout=0.9), KEY, blobs(), num_steps=1),
            "batch_size = 8 is larger than the training set of 4 rows; it must be from 1 to 4",
        ),
    ],
)
def test_each_wrong_value_is_one_line(make, line):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == line
