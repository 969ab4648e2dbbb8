import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import victims
from jaxpoison.types import InputError, as_float

RNG = np.random.RandomState(0)


def ssim(a, b, window):
    """Structural similarity of one image, by the formula, place by place, in float64."""
    at = np.arange(window) - window // 2
    weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    out = []
    for i in range(a.shape[0] - window + 1):
        for j in range(a.shape[1] - window + 1):
            for c in range(a.shape[2]):
                x, y = (m[i : i + window, j : j + window, c] for m in (a, b))
                mx, my = (weight * x).sum(), (weight * y).sum()
                vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
                cov = (weight * (x - mx) * (y - my)).sum()
                out.append(
                    (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
                    / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
                )  # fmt: skip
    return np.mean(out)


@pytest.mark.parametrize(
    ("shape", "window"), [((14, 12, 3), 11), ((8, 8, 1), 7), ((5, 9, 2), 5), ((2, 2, 1), 1)]
)
def test_similarity_equals_the_formulas(shape, window):
    clean = RNG.randint(0, 256, (5, *shape))
    poisoned = np.clip(clean + RNG.randint(-16, 17, clean.shape), 0, 255)
    poisoned[[1, 3]] = clean[[1, 3]]  # rows that did not change do not count
    a, b = clean / 255, poisoned / 255
    got = victims.similarity(
        jnp.asarray(clean, jnp.uint8), jnp.asarray(poisoned, jnp.uint8), batch_size=2
    )
    changed = [0, 2, 4]
    psnr = np.mean([-10 * np.log10(np.mean((a[i] - b[i]) ** 2)) for i in changed])
    np.testing.assert_allclose(got.psnr, psnr, rtol=1e-5)
    expected = np.mean([ssim(a[i], b[i], window) for i in changed])
    np.testing.assert_allclose(got.ssim, expected, atol=1e-5)


def test_similarity_of_constant_images_is_a_closed_form():
    a, b = 51, 102
    clean, other = (jnp.full((2, 8, 8, 3), v, jnp.uint8) for v in (a, b))
    got = victims.similarity(clean, other)
    x, y = a / 255, b / 255
    np.testing.assert_allclose(got.psnr, -20 * np.log10(y - x), rtol=1e-6)
    np.testing.assert_allclose(got.ssim, (2 * x * y + 1e-4) / (x**2 + y**2 + 1e-4), atol=1e-4)
    floats = victims.similarity(as_float(clean), as_float(other))
    np.testing.assert_allclose(floats, got, rtol=1e-6)


def test_identical_sets_have_no_similarity_and_shapes_must_fit():
    image = jnp.asarray(RNG.randint(0, 256, (20, 3, 3, 1)), jnp.uint8)
    assert victims.similarity(image, image) == (None, None)
    assert victims.similarity(image[:0], image[:0]) == (None, None)
    with pytest.raises(InputError, match=r"^clean images are \(20, 3, 3, 1\), poisoned ones \(2"):
        victims.similarity(image, jnp.tile(image, (1, 1, 1, 2))[:2])


def test_residual_energy_is_the_share_along_the_poison():
    clean = RNG.rand(5, 4, 3, 2).astype(np.float32)
    delta = RNG.randn(*clean.shape).astype(np.float32)
    delta[3] = 0  # a clean row does not count
    sideways = RNG.randn(*clean.shape).astype(np.float32)
    length = np.sqrt(np.sum(delta**2, axis=(1, 2, 3), keepdims=True))
    unit = delta / np.maximum(1e-9, length)
    sideways -= np.sum(sideways * unit, axis=(1, 2, 3), keepdims=True) * unit
    poisoned = clean + delta
    for left in (1.0, 0.5, -0.2, 0.0):
        purified = clean + left * delta + sideways
        got = victims.residual_energy(*map(jnp.asarray, (clean, poisoned, purified)), batch_size=2)
        assert got == pytest.approx(left**2, abs=1e-5)
    clean = jnp.asarray(clean)
    assert victims.residual_energy(clean, clean, clean + 1) is None
    levels = jnp.asarray(RNG.randint(0, 256, (64, 28, 28, 1)), jnp.uint8)
    assert victims.residual_energy(levels, levels, 255 - levels) is None
    with pytest.raises(InputError, match="purified ones"):
        victims.residual_energy(clean, clean, clean[:4])
