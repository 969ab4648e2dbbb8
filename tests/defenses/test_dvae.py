"""D-VAE: its loss in closed form, its stages on networks whose output is known, its promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxpoison as jp
from jaxpoison.defenses import DVAESettings, disentangling_loss
from jaxpoison.types import Disentangled, Disentangler

KEY, SHAPE, CODE, CLASSES = jax.random.key(0), (4, 4, 3), (2, 2, 5), 3
SHIFT = 0.0993  # no multiple of half a grey level

pytestmark = pytest.mark.usefixtures("quick_module")


def pictures(num=13, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (num, *SHAPE)).astype(np.uint8)
    return jp.Dataset(image, np.arange(num, dtype=np.int32) % CLASSES)


def stub(shift=SHIFT, noisy=0.0, perturbs=True):
    """x^ = what it sees, p^ = shift + label / 100, each moved by the noise; nothing to learn."""

    def apply(variables, image, label, noise, *, train):
        del train
        move = (
            0.0 if noise is None else noisy * jnp.mean(noise, axis=(1, 2, 3))[:, None, None, None]
        )
        zero = 0 * variables.params["w"] + move
        own = (shift + label / 100).reshape(-1, 1, 1, 1) + jnp.zeros_like(image) + zero
        code = jnp.zeros((image.shape[0], *CODE)) + 0 * variables.params["w"]
        return Disentangled(image + zero, own if perturbs else None, code, code), {}

    init = lambda key: jp.Variables({"w": 0 * jax.random.normal(key, ())}, {})  # noqa: E731
    return Disentangler(init, apply, SHAPE, CODE, CLASSES)


def levels(value, quant=np.floor):
    return quant(255 * np.clip(value, 0, 1)).astype(np.uint8)


def settings(**options):
    return DVAESettings(**{"epochs": 2, "batch_size": 4, "purify_batch": 5} | options)


def purified(network, own, dataset, key=KEY, **options):
    result, info = jp.defenses.fit_purify(jp.defenses.dvae(network, own, **options), key, dataset)
    np.testing.assert_array_equal(result.label, dataset.label)
    assert result.image.dtype == jnp.uint8 and info.outer_loss.shape == (own.num_steps,)
    assert info.finite.all()
    return np.asarray(result.image)


def test_rate_in_closed_form():
    zero = jnp.zeros((3, 2, 2, 256))
    assert jp.defenses.gaussian_kld(zero, zero) == 0
    assert jp.defenses.gaussian_kld(zero + 1, zero) == 128
    rng = np.random.default_rng(0)
    mean, log_variance = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 4)), jnp.float32)
    want = 0.5 * np.mean(np.sum(np.exp(log_variance) + mean**2 - 1 - log_variance, axis=-1))
    np.testing.assert_allclose(jp.defenses.gaussian_kld(mean, log_variance), want, rtol=1e-5)


def parts(seed=0, size=0.3):
    rng = np.random.default_rng(seed)
    image = rng.uniform(size=(3, *SHAPE))
    made = Disentangled(
        rng.uniform(size=image.shape), size * rng.normal(size=image.shape),
        rng.normal(size=(3, *CODE)), rng.normal(size=(3, *CODE)),
    )  # fmt: skip
    return made, image


def numpy_loss(made, image, target, weight, floor, gate):
    both = np.clip(made.image + made.perturbation, 0, 1)
    inside = 1 + made.log_variance - made.mean**2 - np.exp(made.log_variance)
    rate = weight * max(np.mean(-0.5 * inside.sum(-1)), target)
    size = gate * max(np.mean(made.perturbation**2), floor)
    return np.mean((made.image - image) ** 2) + np.mean((both - image) ** 2) + rate + size


def test_loss_and_its_gradient(x64):
    made, image = parts()
    own = {"target": 1.0, "weight": 0.01, "floor": 0.002, "gate": 1.0}

    def loss(m):
        return disentangling_loss(m, jnp.asarray(image), **own).loss

    value, gradient = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, made))
    np.testing.assert_allclose(value, numpy_loss(made, image, **own))
    for seed, (field, slope) in enumerate(zip(made._fields, gradient, strict=True)):
        value = np.asarray(getattr(made, field))
        way = 1e-6 * np.random.default_rng(seed).normal(size=value.shape)
        up, down = (numpy_loss(made._replace(**{field: value + s * way}), image, **own)
                    for s in (1, -1))  # fmt: skip
        np.testing.assert_allclose(np.sum(way * slope), (up - down) / 2, rtol=1e-5)


def test_hinges():
    """No gradient below the target, weight times that of the rate above; p^ is free up to 0.002."""
    made, image = jax.tree.map(jnp.asarray, parts())

    def loss(mean, p, **own):
        some = made._replace(mean=mean, perturbation=p)
        own = {"target": 1.0, "weight": 0.01, "floor": 0.002} | own
        return disentangling_loss(some, image, **own).loss

    slope = jax.grad(loss)
    kld = jax.grad(lambda mean: jp.defenses.gaussian_kld(mean, made.log_variance))(made.mean)
    above = slope(made.mean, made.perturbation, target=0.1)
    np.testing.assert_allclose(above, 0.01 * kld, rtol=1e-5)
    assert not jnp.any(slope(made.mean, made.perturbation, target=100.0))

    def price(size, gate):
        """Of the magnitude alone: the loss with the gate less the loss without it."""
        p = size * jnp.sign(made.perturbation)  # mean square size^2
        cost = lambda p: loss(made.mean, p, gate=gate) - loss(made.mean, p, gate=0.0)  # noqa: E731
        return np.asarray(cost(p)), np.asarray(jax.grad(cost)(p)), np.asarray(p)

    value, gradient, p = price(0.05, 1.0)
    np.testing.assert_allclose(value, 0.0025, rtol=1e-3)
    np.testing.assert_allclose(gradient, 2 * p / p.size, atol=1e-7)
    value, gradient, _ = price(0.04, 1.0)
    np.testing.assert_allclose(value, 0.002, rtol=1e-3)
    assert not gradient.any() and not price(0.05, 0.0)[1].any()


def test_a_plain_vae_and_an_auto_encoder_pay_for_less():
    made, image = jax.tree.map(jnp.asarray, parts())
    plain = disentangling_loss(made._replace(perturbation=None), image, target=1.0, weight=0.01)
    rate = 0.01 * max(float(plain.kld), 1)
    np.testing.assert_allclose(plain.loss, np.mean((made.image - image) ** 2) + rate, rtol=1e-5)
    bare = made._replace(perturbation=None, log_variance=None)
    bare = disentangling_loss(bare, image, target=1.0, weight=0.01)
    np.testing.assert_allclose(bare.loss, np.mean((made.image - image) ** 2), rtol=1e-5)
    error = np.mean((made.image - image) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(bare.psnr, np.mean(-10 * np.log10(error)), rtol=1e-5)


def test_schedules():
    own = DVAESettings()
    assert own.weight_of(1.0) == 0.01 and own.weight_of(0.5) == 0.5 and own.weight_of(3.0) == 0.01
    rates = [float(own.rate_at(e)) for e in (0, 30, 60)]
    np.testing.assert_allclose(rates, [0.005, 0.0025, 0], atol=1e-9)
    firsts = [DVAESettings(epochs=e).first_mag_epoch for e in (60, 100, 30, 12, 1)]
    assert firsts == [11, 11, 6, 3, 1]
    assert DVAESettings(epochs=5, mag_start_epoch=0).first_mag_epoch == 0


def slope_stub():
    """x^ = x + w, so that L = w^2: no code, no p^."""

    def apply(variables, image, label, noise, *, train):
        del label, noise, train
        code = jnp.zeros((image.shape[0], *CODE))
        return Disentangled(image + variables.params["w"], None, code, None), {}

    init = lambda key: jp.Variables({"w": 0.5 + 0 * jax.random.normal(key, ())}, {})  # noqa: E731
    return Disentangler(init, apply, SHAPE, CODE, CLASSES)


@pytest.mark.parametrize("optimizer, clip_norm", (("sgd", 0.05), ("adam", 5.0)))
def test_updates_follow_the_schedule_and_the_clip(optimizer, clip_norm):
    """Three an epoch at the rates r, 3/4 r, 1/4 r; 13 rows in batches of 4, the last left out."""
    own = settings(
        epochs=3, kld_targets=(1.0,), output="rec", learning_rate=0.01, optimizer=optimizer,
        clip_norm=clip_norm,
    )  # fmt: skip
    purifier = jp.defenses.dvae(slope_stub(), own)
    state, info = jp.run(purifier, KEY, pictures(), num_steps=3)
    rates = np.repeat([0.01, 0.0075, 0.0025], 3)
    want = 0.5 - clip_norm * rates.sum()  # the gradient, 2 w, is longer all the way
    if optimizer == "adam":
        w, first, second = 0.5, 0.0, 0.0
        for t, rate in enumerate(rates, 1):
            first, second = 0.9 * first + 0.1 * 2 * w, 0.999 * second + 0.001 * 4 * w**2
            w -= rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        want = w
    np.testing.assert_allclose(state.phi.variables.params["w"], want, rtol=1e-5)
    np.testing.assert_allclose(info.grad_norm[0], 1, rtol=0.05)


ABLATIONS = {  # a setting of section 12 of the specification: (of the network, of the fit)
    "feature": ({"aux_input": "feature"}, {}),
    "class, broadcast": ({"aux_input": "class", "embedding": "broadcast"}, {}),
    "one stage, x^": ({}, {"kld_targets": (2.0,), "output": "rec"}),
    "plain VAE": ({"aux_input": None}, {"kld_targets": (0.5,), "output": "rec"}),
    "auto-encoder": (
        {"aux_input": None, "variational": False, "latent": 1},
        {"kld_targets": (1.0,), "output": "rec", "optimizer": "sgd", "learning_rate": 0.1},
    ),
    "input noise, no L_mag": ({}, {"input_noise_std": 0.062, "mag_start_epoch": 10**6}),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_step_of_every_ablation_keeps_the_shapes_of_its_state(name):
    """Nothing is computed."""
    of_network, of_fit = ABLATIONS[name]
    network = jp.models.dvae(SHAPE, CLASSES, width=2, **of_network)
    purifier = jp.defenses.dvae(network, settings(**of_fit))
    dataset = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, pictures()))
    state = jax.eval_shape(purifier.init, KEY, dataset)
    after, info = jax.eval_shape(purifier.step, KEY, state, dataset)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert info.kld.shape == ()


def test_input_noise_is_what_the_encoder_sees_and_not_what_is_learned():
    """A stub gives back what it sees: L_rec is the square of the noise, of 576 values."""
    for std in (0.0, 0.2):
        own = settings(epochs=1, kld_targets=(1.0,), output="x-p", input_noise_std=std)
        _, info = jp.run(jp.defenses.dvae(stub(0.0), own), KEY, pictures(), num_steps=1)
        np.testing.assert_allclose(info.reconstruction[0], std**2, rtol=0.2, atol=1e-12)


def test_what_each_epoch_pays():
    """A stub's loss: target k of each stage by its weight, and the magnitude once it counts."""
    own = settings(epochs=3, kld_targets=(0.5, 3.0), mag_start_epoch=2, mag_floor=0.1)
    _, info = jp.defenses.fit_purify(jp.defenses.dvae(stub(0.0), own), KEY, pictures())
    late = np.array([0, 0, 1, 0, 0, 1])
    want = info.reconstruction + info.sum + np.repeat([0.5 * 0.5, 0.01 * 3], 3) + 0.1 * late
    np.testing.assert_allclose(info.outer_loss, want, rtol=1e-5)
    np.testing.assert_allclose(info.reconstruction, 0, atol=1e-12)
    np.testing.assert_allclose(info.kld, 0, atol=1e-12)
    np.testing.assert_allclose(info.magnitude, 5e-4 / 3, rtol=0.3)  # (0, 0.01, 0.02)^2


@functools.cache
def whole():
    return purified(stub(), settings(), pictures())


def one_pass(network, dataset, **options):
    variables = jp.Variables({"w": jnp.zeros(())}, {})
    return np.asarray(jp.defenses.purified_images(network, variables, dataset, **options))


def near(found, want):
    """But for a level that float32 puts on its edge."""
    assert np.mean(found == want) > 0.98
    assert np.max(np.abs(found.astype(int) - want)) <= 1


def test_two_stages_subtract_twice_and_reconstruct():
    """13 rows in batches of 5: every row, in order; the second pass sees the subtracted image."""
    dataset = pictures()
    p = np.float32(SHIFT + (np.arange(13) % 3) / 100).reshape(-1, 1, 1, 1)
    value = np.float32(dataset.image) / np.float32(255)
    first = levels(value - p)
    near(whole(), levels(np.float32(first) / np.float32(255) - p))
    near(purified(stub(), settings(kld_targets=(1.0,), output="x-p"), dataset), first)
    rounded = one_pass(stub(), dataset, output="x-p", quant="round", batch_size=5)
    np.testing.assert_array_equal(rounded, levels(value - p, np.round))
    near(one_pass(stub(), dataset, output="two_stage", batch_size=6), first)
    same = one_pass(stub(perturbs=False), dataset, output="rec", quant="round", batch_size=20)
    np.testing.assert_array_equal(same, dataset.image)


def test_only_the_named_rows_change():
    dataset, rows = pictures(), np.array([12, 3, 5])
    found = purified(stub(), settings(), dataset, rows=rows)
    others = np.setdiff1d(np.arange(13), rows)
    np.testing.assert_array_equal(found[others], dataset.image[others])
    np.testing.assert_array_equal(found[rows], whole()[rows])
    assert np.any(found[rows] != dataset.image[rows])


@functools.cache
def noisy():
    """A purifier whose output moves with what is drawn."""
    return jp.defenses.dvae(stub(noisy=0.5), settings())


def test_what_is_drawn():
    """By the key and the row's number: not by the batch; nothing where the code is its mean."""
    dataset = pictures()
    first, again, other = (
        np.asarray(jp.defenses.fit_purify(noisy(), key, dataset)[0].image)
        for key in (KEY, KEY, jax.random.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    for output in ("x-p", "two_stage"):
        small, large = (
            one_pass(stub(noisy=0.5), dataset, key=KEY, output=output, batch_size=size)
            for size in (5, 100)
        )
        np.testing.assert_array_equal(small, large)
        still = one_pass(stub(noisy=0.5), dataset, output=output)
        np.testing.assert_array_equal(still, one_pass(stub(), dataset, key=KEY, output=output))
        assert np.any(still != small)
    shaken = one_pass(stub(), dataset, key=KEY, output="rec", input_noise_std=0.1)
    apart = shaken / 255 - dataset.image / 255.0
    inside = (dataset.image > 80) & (dataset.image < 175)
    assert 0.08 < np.std(apart[inside]) < 0.12
    exact = settings(sample_latent=False)
    np.testing.assert_array_equal(purified(stub(noisy=0.5), exact, dataset), whole())


def test_stage_two_learns_from_what_apply_gives_again():
    """Stage one's grey levels are kept; `apply` makes the same ones of the same rows."""
    dataset, network, process = pictures(), stub(noisy=0.5), noisy()
    state, _ = jp.run(process, KEY, dataset, num_steps=process.num_steps)
    key = jax.random.key(state.draw)
    image = jp.defenses.purified_images(network, state.other, dataset, key=key, batch_size=7)
    np.testing.assert_array_equal(image, state.image)
    some = jax.tree.map(lambda x: x[:6], dataset)
    assert process.apply(KEY, state, some).image.shape[0] == 6  # rows that it was not fitted to
    shift = jp.defenses.perturbations(stub(), state.other, dataset)
    want = np.broadcast_to(SHIFT + (np.arange(13) % 3).reshape(-1, 1, 1, 1) / 100, shift.shape)
    np.testing.assert_allclose(shift, want, rtol=1e-5)


def test_a_run_in_chunks_takes_the_same_steps(tmp_path):
    """Stopped before the border between the stages, and gone on with over it."""
    process, dataset = noisy(), pictures()
    state, info = jp.run(process, KEY, dataset, num_steps=4)
    options = {"directory": tmp_path, "save_every": 1, "console": Console(quiet=True)}
    jp.run_chunks(process, KEY, dataset, num_steps=1, **options)
    other, seen, _ = jp.run_chunks(process, KEY, dataset, num_steps=4, **options)
    np.testing.assert_allclose(seen.outer_loss, info.outer_loss, rtol=1e-5)
    np.testing.assert_array_equal(other.image, state.image)
    assert int(other.draw) == int(state.draw)


def test_wrong_arguments_are_one_clear_line():
    for options, line in (
        ({"kld_targets": (1.0, 2.0, 3.0)}, r"kld_targets = \(1.0, 2.0, 3.0\); it must be one"),
        ({"kld_targets": (0.0,)}, "kld_targets = 0.0; it must be a finite number above 0"),
        ({"output": "x"}, "output = 'x'; allowed are x-p, rec, two_stage"),
        ({"quant": "floor"}, "quant = 'floor'; allowed are trunc, round"),
        ({"optimizer": "lion"}, "optimizer = 'lion'; allowed are adam, sgd"),
        ({"epochs": 0}, "epochs = 0; it must be at least 1"),
        ({"mag_floor": -1}, "mag_floor = -1; it must be"),
        ({"mag_start_epoch": -1}, "mag_start_epoch = -1; it must be at least 0"),
    ):
        with pytest.raises(jp.InputError, match=f"^{line}"):
            DVAESettings(**options)
    with pytest.raises(jp.InputError, match="^output = 'two_stage' with one number"):
        jp.defenses.dvae(stub(), DVAESettings(kld_targets=(1.0,)))
    with pytest.raises(jp.InputError, match="^the network predicts no perturbation"):
        jp.defenses.dvae(stub(perturbs=False))
    process, dataset = jp.defenses.dvae(stub(), settings()), pictures()
    for wrong, line in (
        (dataset._replace(image=dataset.image[:, :3]), r"images are \(3, 4, 3\); the D-VAE was"),
        (
            dataset._replace(image=dataset.image / np.float32(255)),
            "images are float32; this purifier takes",
        ),
    ):
        with pytest.raises(jp.InputError, match=f"^{line}"):
            jp.defenses.fit_purify(process, KEY, wrong)
    state, _ = jp.run(process, KEY, dataset, num_steps=2)
    with pytest.raises(jp.InputError, match="^the fit has done 2 of its 4 steps"):
        process.apply(KEY, state, dataset)
    with pytest.raises(jp.InputError, match="^labels run from 0 to 3; the D-VAE was built for 0"):
        process.apply(KEY, state, dataset._replace(label=np.arange(13) % 4))
    with pytest.raises(jp.InputError, match="^rows runs from 3 to 13; allowed are 0 to 12"):
        jp.defenses.fit_purify(
            jp.defenses.dvae(stub(), settings(), rows=np.array([3, 13])), KEY, dataset
        )
