"""Shares of a poison and its noise on other images, counted and found again on stored arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.report import StudyConfig, control, main_job, permuted, shares, stored
from jaxpoison.report.probes import everything
from jaxpoison.types import Dataset, InputError
from jaxpoison.victims import recipes
from tests.report import small_job

pytestmark = pytest.mark.usefixtures("quick_module")
BUDGET = jp.perturb.Budget("linf", small_job.EPS)
NOISE = "random-noise"


def run(runs, arms, **options):
    return main_job(
        "derived",
        StudyConfig(**{"runs": runs, "victims": 1, "share": 0.5} | options),
        victim=jp.models.logistic_regression(small_job.SHAPE, small_job.CLASSES),
        recipe=recipes.small(epochs=1, batch_size=16),
        split=small_job.split(),
        source={"name": "blobs"},
        arms=arms,
        main=next(iter(arms)),
    )


def arms():
    mixed = shares(NOISE, (0.25, 0.75), expect="mixed")
    return control(BUDGET) | mixed | permuted(NOISE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, run(runs, arms(), craft_seeds=2)


def read(runs, name):
    return jp.data.poisoned.read(runs / "derived" / "default" / "poison" / name)


def test_shares_are_counted_nested_and_seeded(finished, tmp_path):
    runs, record = finished
    clean = np.asarray(small_job.split().train.image)
    whole = read(runs, NOISE)
    assert whole.mask.sum() == 24  # StudyConfig.share of 48
    masks = []
    for share, num in ((0.25, 6), (0.75, 18)):
        mixed = read(runs, f"{NOISE}@{share}")
        image = np.asarray(mixed.dataset.image)
        changed = (image != clean).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, mixed.mask)
        assert changed.sum() == num and not (changed & ~whole.mask).any()
        np.testing.assert_array_equal(image[changed], np.asarray(whole.dataset.image)[changed])
        assert mixed.manifest.settings["share"] == share
        assert mixed.manifest.settings["of"] == NOISE
        masks.append(changed)
        entry = record["arms"][f"{NOISE}@{share}"]
        assert entry["sweep"] == {"of": NOISE, "option": "share", "value": share}
        assert entry["poison"]["eps"] == small_job.EPS and entry["expect"] == "mixed"
        assert len(entry["craft_seeds"]["values"]) == 2
        facts = record["config"]["attacks"][f"{NOISE}@{share}"]
        assert facts == {"derived": "share", "of": NOISE, "share": share}
    assert not (masks[0] & ~masks[1]).any()
    again = read(runs, f"{NOISE}@0.25.1")
    assert not np.array_equal(again.mask, masks[0])  # another attack key, other rows
    run(tmp_path, control(BUDGET) | shares(NOISE, (0.25,), expect="-"))
    np.testing.assert_array_equal(read(tmp_path, f"{NOISE}@0.25").mask, masks[0])


def test_permuted_noise_is_that_of_another_image_each(finished):
    runs, record = finished
    clean = np.asarray(small_job.split().train.image).astype(int)
    whole, moved = read(runs, NOISE), read(runs, f"{NOISE}-permuted")
    rows = np.flatnonzero(whole.mask)
    np.testing.assert_array_equal(np.flatnonzero(moved.mask), rows)
    noise = np.asarray(whole.dataset.image).astype(int) - clean
    image, givers = np.asarray(moved.dataset.image), []
    for row in rows:
        hits = [r for r in rows if (image[row] == np.clip(clean[row] + noise[r], 0, 255)).all()]
        assert len(hits) == 1 and hits[0] != row
        givers += hits
    assert sorted(givers) == rows.tolist()
    assert "sweep" not in record["arms"][f"{NOISE}-permuted"]


def test_a_poison_stored_before_is_mixed_alike(finished, tmp_path):
    runs, _ = finished
    path = runs / "derived" / "default" / "poison" / NOISE
    taken = {"old": stored(path, "-")} | shares("old", (0.75,), expect="-")
    run(tmp_path, taken, share=1.0)
    mixed = read(tmp_path, "old@0.75")
    np.testing.assert_array_equal(mixed.mask, read(runs, f"{NOISE}@0.75").mask)
    assert mixed.manifest.extra["poison"] == read(runs, NOISE).manifest.files


def test_uniform_noise_is_a_control_of_its_own():
    both = control(BUDGET) | control(BUDGET, distribution="uniform")
    assert list(both) == [NOISE, f"{NOISE}-uniform"]
    grey = Dataset(jnp.full((48, *small_job.SHAPE), 128, jnp.uint8), jnp.zeros(48, jnp.int32))
    sizes = []
    for one in both.values():
        poison = one.attack.poison(one.attack.init(jax.random.key(0), everything(grey)),
                                   everything(grey))  # fmt: skip
        sizes.append(np.abs(np.asarray(poison.image) - 128 / 255) / small_job.EPS)
    np.testing.assert_allclose(sizes[0], 1, rtol=1e-5)
    assert sizes[1].max() <= 1 + 1e-5 and abs(sizes[1].mean() - 0.5) < 0.02


def test_bad_derivations_end_before_work(tmp_path):
    noise, mixed = control(BUDGET), shares(NOISE, (0.5,), expect="-")
    for wrong, message in [
        (mixed | noise, "arm 'random-noise@0.5' is made of 'random-noise'; allowed are earlier: n"),
        (noise | shares("nosie", (0.5,), expect="-"), "is made of 'nosie'; .*: random-noise$"),
        (noise | mixed | permuted(f"{NOISE}@0.5"), "is made of 'random-noise@0.5'; allowed"),
        (noise | shares(NOISE, (0.001,), expect="-"), "share = 0.001 of 24 poisoned rows is less"),
    ]:
        with pytest.raises(InputError, match=message):
            run(tmp_path, wrong)
        assert not list(tmp_path.iterdir())
    for values, message in [
        ((0.5, 0.5), "share = 0.5 is named twice"),
        ((1.0,), "share = 1.0; it must be a number above 0 and below 1"),
    ]:
        with pytest.raises(InputError, match=message):
            shares(NOISE, values, expect="-")
    with pytest.raises(InputError, match="distribution = 'normal'; allowed are None, uniform"):
        control(BUDGET, distribution="normal")


def test_rows_that_become_clean_again_have_their_own_labels(tmp_path):
    train = small_job.split().train
    flipped = train._replace(label=(train.label + 1) % small_job.CLASSES)
    jp.data.poisoned.write(
        tmp_path / "flip", poisoned=flipped, clean=train, index=range(48), attack="flip",
        settings={}, norm="linf", eps=0.1, source={"name": "blobs"}, labels_changed=True,
    )  # fmt: skip
    taken = {"flip": stored(tmp_path / "flip", "-")} | shares("flip", (0.25,), expect="-")
    run(tmp_path, taken, share=1.0)
    mixed = read(tmp_path, "flip@0.25")
    other = np.asarray(mixed.dataset.label) != np.asarray(train.label)
    np.testing.assert_array_equal(other, mixed.mask)
    assert other.sum() == 12
