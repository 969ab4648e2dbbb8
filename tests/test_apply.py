"""`python -m jaxpoison apply`: a run's generator on its own training set and on other data."""

import functools
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import data, models
from jaxpoison.__main__ import main
from jaxpoison.data import poisoned
from jaxpoison.perturb import Budget
from jaxpoison.report import Study, StudyConfig, arm
from jaxpoison.types import Scenario
from tests.attacks import tiny_generator

pytestmark = pytest.mark.usefixtures("quick_module")
EPS = 0.1


def craft(study, name, network, index):
    one = arm(tiny_generator.untrained, network, eps=EPS, budget=Budget("linf", EPS), expect="")
    train = data.digits("train")
    source = {"name": "digits", "split": "train", "data_dir": None}
    how = {"num_steps": 1, "budget": one.budget, "settings": one.settings, "network": one.network}
    scenario = Scenario(train, train, index)
    return study.poisons.craft(name, one.attack, jax.random.key(7), scenario, source=source, **how)


@functools.cache
def network():
    return models.create_generator("mlp_generator", (8, 8, 1), hidden=(8,))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders: of one shipped network, of two arms, of a user's own network, of none."""
    folder = tmp_path_factory.mktemp("runs")
    everything = jnp.arange(1400, dtype=jnp.int32)
    one = Study("one", StudyConfig(runs=folder))
    craft(one, "dc", network(), everything)
    two = Study("two", StudyConfig(runs=folder))
    craft(two, "dc", network(), everything[:5])
    craft(two, "gue", network(), everything[:5])
    craft(Study("own", StudyConfig(runs=folder)), "mine", tiny_generator.network(), everything[:5])
    (folder / "none" / "default" / "poison" / "em").mkdir(parents=True)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_training_set_gets_the_bits_of_the_run(runs, here, capsys):
    run = runs / "one" / "default"
    assert main(["apply", str(run), "digits"]) == 0
    path, line = capsys.readouterr().out.splitlines()
    assert path == "dc-digits-train"
    crafted, again = poisoned.read(run / "poison" / "dc"), poisoned.read(path)
    np.testing.assert_array_equal(again.dataset.image, crafted.dataset.image)
    assert again.manifest.files == {**crafted.manifest.files}
    for name in ("attack", "settings", "norm", "eps", "key", "source", "num_changed", "measured"):
        assert getattr(again.manifest, name) == getattr(crafted.manifest, name), name
    origin = again.manifest.extra["generator"]
    assert origin["path"] == str(run / "craft" / "dc" / "generator")
    assert origin["trained"]["train"]["num_changed"] == 1400
    levels = again.manifest.measured["grey_level_max"]
    shift = np.abs(again.dataset.image.astype(int) - data.digits("train").image)
    assert 5 < levels == shift.max() <= 25
    assert line.startswith(
        f"1400 of 1400 images: linf eps 0.1 (25.5/255), measured {levels / 255:.6g}; "
        f"largest change {levels} grey levels, PSNR "
    )
    close = jp.victims.similarity(data.digits("train").image, again.dataset.image)
    assert line.endswith(f"PSNR {close.psnr:.1f} dB")


def test_images_it_never_saw_are_a_poison_folder_that_verifies(runs, here, capsys):
    """Another split; and another set of the shape, in an npz file, by a folder that has moved."""
    generator = shutil.copytree(runs / "two/default/craft/gue/generator", here / "kept")
    assert main(["apply", str(generator), "digits", "--split", "test[:90]", "--eps", "0.4"]) == 0
    path, line = capsys.readouterr().out.splitlines()
    assert path == "gue-digits-test-90" and "linf eps 0.4 (102/255)" in line
    assert main(["verify", path]) == 0
    out = capsys.readouterr().out
    assert out.count("PASS") == len(out.splitlines()) - 1
    manifest = poisoned.read(path).manifest
    assert manifest.extra["generator"]["trained"]["eps"] == EPS < manifest.measured["norm_max"]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    np.savez(here / "other.npz", image=image, label=np.arange(40) % 3)
    words = ["apply", str(generator), "other.npz", "--share", "0.5", "--seed", "3"]
    for how in ("nearest", "truncate", "cast", "none"):
        assert main([*words, "--rounding", how, "--out", f"deep/{how}"]) == 0
        line = capsys.readouterr().out.splitlines()[1]
        assert line.startswith("20 of 40 images: linf eps ")
        stored = poisoned.read(f"deep/{how}")
        assert stored.manifest.rounding == (None if how == "none" else how)
        assert stored.manifest.source["name"] == str(here / "other.npz")
        os.chdir("deep")
        assert main(["verify", how]) == 0
        os.chdir(here)
        out = capsys.readouterr().out
        assert out.count("PASS") == len(out.splitlines()) - 1
        assert ("1/255 of" in out) == ("1/255 of" in line) == (how == "cast")
    assert stored.dataset.image.dtype == np.float32 and stored.manifest.domain == "float"
    rows = data.poison_rows(jax.random.key(3), data.from_npz("other.npz"), share=0.5)
    assert np.flatnonzero(stored.mask).tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "digits"], "nothing has no trained generator; there is no such folder"),
        (["none/default", "digits"], "no trained generator; none of its arms trains one: em"),
        (["one", "digits"], "has no trained generator; did you mean {}/one/default?"),
        (["one/default/craft/dc", "digits"], "did you mean {}/one/default/craft/dc/generator?"),
        ([".", "digits"], "has no trained generator; it is no run folder"),
        (["two/default", "digits"], "has trained generators of dc, gue; choose one as arm"),
        (["two/default", "digits", "--arm", "gu"], "arm = 'gu' has none; "),
        (["one/default/craft/dc/generator", "digits", "--arm", "dc"], "is one generator; an arm"),
        (["own/default", "digits"], "holds a network of your own, which the command line does"),
        (["one/default", "digits", "--split", "tset"], "digits has no split 'tset'"),
        (["one/default", "digit", "--data-dir", "."], "no data set 'digit'; did you mean 'digits'"),
        (["one/default", "no.npz"], "no file no.npz"),
        (["one/default", "wide.npz"], "images are (9, 8, 1); the generator was trained on (8, 8"),
        (["one/default", "digits", "--eps", "8"], "eps = 8 looks like grey levels; write 8/255"),
        (["one/default", "digits", "--share", "0"], "share = 0.0; it must be a number"),
        (
            ["one/default", "digits", "--rounding", "up"],
            "rounding = 'up'; allowed are nearest, truncate, cast, none",
        ),
        (["one/default", "digits", "--out", "taken"], "taken exists; choose another --out"),
        (["one/default", "digits", "--out", "file/under"], "cannot write the poison to file/under"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(runs, here, capsys, words, message):
    np.savez(here / "wide.npz", image=np.zeros((3, 9, 8, 1), np.uint8), label=np.zeros(3, int))
    (here / "file").write_text("kept")
    (here / "taken").mkdir()
    before = sorted(here.rglob("*"))
    assert main(["apply", str(runs / words[0]), *words[1:]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message.format(runs) in err
    assert sorted(here.rglob("*")) == before


def test_a_damaged_generator_is_one_line(runs, here, capsys):
    generator = shutil.copytree(runs / "one/default/craft/dc/generator", here / "damaged")
    files = [f for f in (generator / "00000000" / "state").rglob("*") if f.is_file()]
    max(files, key=lambda f: f.stat().st_size).write_bytes(b"")
    assert main(["apply", "damaged", "digits"]) == 2
    assert "damaged cannot be loaded: checkpoint" in capsys.readouterr().err
    card = generator / "generator.json"
    card.write_text(card.read_text().replace("mlp_generator", "unet"))
    assert main(["apply", "damaged", "digits"]) == 2
    assert "it was damaged or changed" in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["damaged"]


def test_a_network_of_ones_own_is_passed_in_python(runs, here):
    from jaxpoison.report import apply_generator

    done = apply_generator(
        runs / "own/default", "digits", split="test", network=tiny_generator.network()
    )
    report = poisoned.verify(done.path, data.digits("test"))
    assert report.passed and done.path.name == "mine-digits-test"
    assert done.manifest.num_changed == 397 and done.similarity.psnr > 20
