"""Linear transfer and fine-tuning, from pretrained arrays that are data."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxpoison as jp
from jaxpoison import data, victims
from jaxpoison.types import Dataset, InputError, Split, TrainState, Variables
from jaxpoison.victims import Recipe, TransferSplit, fine_tuning, linear_transfer, transfer

KEY, SHAPE, CLASSES, NUM = jax.random.key(0), (4, 4, 1), 3, 16
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    learning_rate=0.5,
    schedule="step",
    milestones=(2,),
    nesterov=True,
    weight_decay=0.05,
    clip_norm=0.3,
)


@functools.cache
def victim(classes=CLASSES):
    return jp.models.mlp(SHAPE, classes, hidden=(6, 5), logits_norm=False)


@functools.cache
def pretrained(classes=CLASSES, seed=5):
    """Random weights, and running statistics that are not those of the data."""
    params, stats = victim(classes).init(jax.random.key(seed))
    return Variables(params, jax.tree.map(lambda x: x + 0.3, stats))


@functools.cache
def split():
    every = data.synthetic.blobs(jax.random.key(1), NUM + 10, CLASSES, SHAPE)
    return Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(NUM), slice(NUM, None))))


@functools.cache
def process(make=linear_transfer, recipe=RECIPE, **options):
    return make(victim(), recipe, NUM, **options)


def start(variables):
    return TransferSplit(*split(), variables)


def run(make, recipe=RECIPE, variables=None, **options):
    chosen = start(pretrained() if variables is None else variables)
    return jp.run(process(make, recipe, **options), KEY, chosen, num_steps=recipe.epochs)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.cache
def linear():
    return run(linear_transfer)


def test_linear_transfer_moves_the_last_layer_alone():
    state, info = linear()
    old = pretrained()
    assert isinstance(state, TrainState) and info.finite.all()
    equal(state.stats, old.stats)
    for layer, values in state.params.items():
        if layer != "Dense_2":
            equal(values, old.params[layer])
    assert not np.allclose(state.params["Dense_2"]["kernel"], old.params["Dense_2"]["kernel"])
    held = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert held == 5 * 3 + 3  # momentum of the last layer


@pytest.mark.usefixtures("quick_compile")
def test_linear_transfer_is_softmax_regression_on_the_features():
    """One batch an epoch, against numpy: clipping, coupled weight decay, Nesterov, the schedule."""
    recipe = dataclasses.replace(RECIPE, batch_size=NUM)
    training = process(linear_transfer, recipe)
    state, info = run(linear_transfer, recipe)
    first = training.init(jax.random.split(KEY)[0], start(pretrained())).params["Dense_2"]
    image = split().train.image.astype(jnp.float32) / 255
    features = np.asarray(victim().features(pretrained(), image), np.float64)
    x = np.concatenate([features, np.ones((NUM, 1))], axis=1)
    w = np.concatenate([first["kernel"], first["bias"][None]]).astype(np.float64)
    label = np.eye(CLASSES)[np.asarray(split().train.label)]
    v, losses = np.zeros_like(w), []
    for rate in (0.5, 0.5, 0.05):
        z = x @ w
        losses.append(-np.mean(np.sum(label * scipy.special.log_softmax(z, axis=1), axis=1)))
        g = x.T @ (scipy.special.softmax(z, axis=1) - label) / NUM
        g = g * min(1, 0.3 / np.linalg.norm(g)) + 0.05 * w
        v = 0.9 * v + g
        w = w - rate * (g + 0.9 * v)
    np.testing.assert_allclose(info.outer_loss, losses, rtol=1e-5)
    got = state.params["Dense_2"]
    np.testing.assert_allclose(got["kernel"], w[:-1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["bias"], w[-1], rtol=1e-4, atol=1e-6)
    scores = victim().apply(state.variables, split().test.image / 255.0, train=False)[0]
    np.testing.assert_allclose(
        info.test_accuracy[-1], np.mean(scores.argmax(1) == split().test.label)
    )


def test_linear_transfer_pays_for_no_backward_pass_of_the_extractor():
    def products(make):
        """Matrix products of one update and of one look at the test set, three layers each."""
        recipe = dataclasses.replace(RECIPE, batch_size=NUM)
        step, chosen = process(make, recipe).step, start(pretrained())
        state = jax.eval_shape(process(make, recipe).init, KEY, chosen)
        return str(jax.make_jaxpr(step)(KEY, state, chosen)).count("= dot_general[")

    assert products(linear_transfer) == 3 + 1 + 3
    assert products(fine_tuning) == 3 + 5 + 3


def test_restarts_devices_and_resumption_give_the_same_bits(tmp_path):
    one, chosen = process(), start(pretrained())
    several = jp.over_restarts(one, 2)
    state, info = jp.run(several, KEY, chosen, num_steps=2)
    sharded, _ = jp.run(jp.over_devices(one, jp.device_mesh(2), 2), KEY, chosen, num_steps=2)
    equal(state, sharded)
    jp.run_chunks(several, KEY, chosen, num_steps=1, directory=tmp_path)
    resumed, *_ = jp.run_chunks(several, KEY, chosen, num_steps=2, directory=tmp_path)
    equal(state, resumed)
    equal(chosen.start, pretrained())  # no loop took the pretrained arrays for its own
    kernels = state.params["Dense_2"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])
    judged = victims.judge(victim(), state, info, *split())
    np.testing.assert_allclose(judged.final_accuracy.values, info.test_accuracy[-1], atol=1e-6)


@pytest.mark.usefixtures("quick_compile")
def test_batches_over_devices_and_in_parts_are_the_same_training():
    spread, _ = run(linear_transfer, mesh=jp.device_mesh(2, axis="batch"), accumulate=2)
    chex.assert_trees_all_close(spread, linear()[0], atol=1e-5)


@pytest.mark.usefixtures("quick_compile")
def test_a_second_pretrained_network_compiles_nothing():
    traced = []

    def apply(*arguments, **options):
        traced.append(1)
        return victim().apply(*arguments, **options)

    training = linear_transfer(victim()._replace(apply=apply), RECIPE, NUM)
    first, _ = jp.run(training, KEY, start(pretrained()), num_steps=2)
    count = len(traced)
    second, _ = jp.run(training, KEY, start(pretrained(seed=6)), num_steps=2)
    assert len(traced) == count
    equal(second.params["Dense_0"], pretrained(seed=6).params["Dense_0"])


@pytest.mark.usefixtures("quick_compile")
def test_fine_tuning_is_plain_training_from_these_weights():
    state, info, _ = jp.run_chunks(
        process(fine_tuning), KEY, start(pretrained()), num_steps=RECIPE.epochs
    )
    told = victim()._replace(init=lambda key: pretrained())
    plain, plain_info = jp.run(
        victims.victim_training(told, RECIPE, NUM), KEY, split(), num_steps=RECIPE.epochs
    )
    chex.assert_trees_all_close((state, info), (plain, plain_info), atol=1e-6)
    first = process(fine_tuning).init(KEY, start(pretrained()))
    equal(first.variables, pretrained())
    assert not np.allclose(state.params["Dense_0"]["kernel"], first.params["Dense_0"]["kernel"])


@pytest.mark.parametrize(
    ("make", "options"), [(linear_transfer, {}), (fine_tuning, {"warm": False})]
)
def test_a_network_pretrained_on_other_classes_gets_a_new_last_layer(make, options):
    other = pretrained(7)
    first = process(make, **options).init(KEY, start(other))
    assert first.params["Dense_2"]["kernel"].shape == (5, CLASSES)
    equal(first.params["Dense_2"], victim().init(KEY).params["Dense_2"])
    equal(first.params["Dense_0"], other.params["Dense_0"])
    equal(first.stats, other.stats)
    with pytest.raises(InputError, match=r"is \(7,\), not \(3,\)"):
        process(fine_tuning).init(KEY, start(other))


def test_a_transfer_of_saved_networks(tmp_path):
    one = pretrained()
    several = jax.tree.map(lambda *x: jnp.stack(x), one, pretrained(seed=6))
    victims.save(tmp_path / "one", one, network=victim(), image_shape=SHAPE, num_classes=CLASSES)
    card = {"network": "mlp", "image_shape": SHAPE, "num_classes": CLASSES}
    card |= {"options": {"hidden": [6, 5], "logits_norm": False}}
    victims.save(tmp_path / "named", one, **card)
    victims.save(tmp_path / "two", several, **card)
    equal(transfer("linear", tmp_path / "named").start, one)
    equal(transfer("linear", victims.load(tmp_path / "one", victim=victim())).start, one)
    equal(transfer("fine_tuning", tmp_path / "two", member=1).start, pretrained(seed=6))
    with pytest.raises(InputError, match="member = None; 2 networks are saved there: 0 to 1"):
        transfer("linear", tmp_path / "two")
    with pytest.raises(InputError, match="member = 0; a single network"):
        transfer("linear", tmp_path / "named", member=0)
    with pytest.raises(InputError, match="member is for saved"):
        transfer("linear", one, member=0)
    with pytest.raises(InputError, match="mode = 'frozen'; allowed are linear, fine_tuning"):
        transfer("frozen", one)


def test_transfer_training_is_the_training_of_that_mode():
    made = victims.transfer_training("linear", victim(), RECIPE, NUM)
    chosen = transfer("linear", pretrained()).data(split())
    state, _ = jp.run(made, KEY, chosen, num_steps=3)
    equal(state, linear()[0])
    for warm in (True, False):
        made = victims.transfer_training("fine_tuning", victim(), RECIPE, NUM, warm=warm)
        first = made.init(KEY, chosen).params["Dense_2"]
        equal(first, (pretrained() if warm else victim().init(KEY)).params["Dense_2"])
    with pytest.raises(InputError, match="mode = 'frozen'; allowed are None, linear"):
        victims.transfer_training("frozen", victim(), RECIPE, NUM)
    plain = victims.transfer_training(None, victim(), RECIPE, NUM)
    equal(plain.init(KEY, split()).variables, victim().init(KEY))


def test_what_cannot_be_transferred_is_refused(tmp_path):
    batch = dataclasses.replace(RECIPE, statistics="batch")
    with pytest.raises(InputError, match="statistics = 'batch'"):
        linear_transfer(victim(), batch, NUM)
    with pytest.raises(InputError, match="batch_size = 8 is larger"):
        linear_transfer(victim(), RECIPE, 5)
    for name, part in zip(("train", "test"), split(), strict=True):
        np.savez(tmp_path / f"blobs-{name}.npz", image=part.image, label=part.label)
    rows = [data.stream("blobs", s, tmp_path) for s in ("train", "test")]
    stacked = jax.tree.map(lambda x: x[None], pretrained())
    for make in (linear_transfer, fine_tuning):
        with pytest.raises(InputError, match="a pretrained network is needed"):
            process(make).init(KEY, split())
        with pytest.raises(InputError, match="stays on disk"):
            process(make).init(KEY, TransferSplit(*rows, pretrained()))
    with pytest.raises(InputError, match="leading axis of networks"):
        process(fine_tuning).init(KEY, start(stacked))


def test_a_transfer_knows_its_network_by_hash():
    facts = transfer("linear", pretrained()).facts()
    assert facts == transfer("linear", jax.tree.map(np.asarray, pretrained())).facts()
    assert facts["start_sha256"] != transfer("linear", pretrained(seed=6)).facts()["start_sha256"]
    assert facts | {"mode": "fine_tuning"} == transfer("fine_tuning", pretrained()).facts()
