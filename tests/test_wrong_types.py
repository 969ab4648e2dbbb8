"""An object of another kind than is asked for is one line that names both, before anything runs."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxpoison as jp
from jaxpoison import data, defenses, report, victims
from jaxpoison.types import Dataset, InputError, Split, TrainState

KEY = jax.random.key(0)
SET = Dataset(jnp.zeros((4, 1, 1, 3)), jnp.zeros(4, jnp.int32))
PIXELS = SET._replace(image=jnp.zeros((4, 1, 1, 3), jnp.uint8))
HEAD = jp.models.logistic_regression((1, 1, 3), 2)
ARRAYS = HEAD.init(KEY)
SETTINGS = victims.ToConvergence(1e-3)
FLIP = jp.attacks.label_flip(num_classes=2)
GRAY = defenses.grayscale()
SQUARES = Dataset(jnp.zeros((4, 8, 8, 3), jnp.uint8), jnp.zeros(4, jnp.int32))
OTHERS = SQUARES._replace(label=SET.label + 2)
IMAGES = jnp.zeros((2, 8, 8, 3))
MIXUP = defenses.mixup()
DVAE = jp.models.dvae((8, 8, 3), 2, width=4)
STACKED = jax.tree.map(lambda x: jnp.stack([x, x]), ARRAYS)


def call(function, *parts, **options):
    """Without the suite's type checker, which would speak first."""
    return lambda: inspect.unwrap(function)(*parts, **options)


def job(**options):
    player = report.Player(HEAD, {"lbfgs": SETTINGS}, "lbfgs")
    flip = report.added_arm(jp.attacks.label_flip, num_classes=2, expect="-")
    asked = {"players": {"": player}, "split": Split(PIXELS, PIXELS), "source": {"name": "-"}}
    asked |= {"arms": {"flip": flip}, "main": "flip"} | options
    return call(report.added_job, "-", report.AddedConfig(), **asked)


def player(**fields):
    plain = {"victim": HEAD, "followers": {"lbfgs": SETTINGS}, "reference": "lbfgs"}
    return job(players={"": report.Player(**plain | fields)})


def arm(factory, **options):
    return call(report.added_arm, factory, expect="-", **options)


def purify(purifier, dataset=SQUARES):
    return call(defenses.fit_purify, purifier, KEY, dataset)


def one_target():
    """What `DVAESettings(kld_targets=3.0)` does where no type checker stands around it."""
    settings = defenses.DVAESettings()
    object.__setattr__(settings, "kld_targets", 3.0)
    settings.__post_init__()


def at_surrogate(factory, **options):
    attack = factory(HEAD, eps=0.1, **options)
    return call(jp.run, attack, KEY, jp.Scenario(SET, SET, jnp.arange(1), STACKED), num_steps=1)


def constrained(factory, *parts, **options):
    return call(factory, *parts, constraint="box", **options)


ROWS = {
    "extract": (call(victims.extract, HEAD, SET), "extractor is a Victim; it must be an"),
    "arrays of an extractor": (
        call(victims.extract, victims.Extractor(HEAD, TrainState(*ARRAYS, ())), SET),
        "extractor.variables is a TrainState; it must be a Variables",
    ),
    "swapped": (
        call(victims.extract, victims.Extractor(ARRAYS, HEAD), SET),
        "extractor.victim is a Variables; it must be a Victim",
    ),
    "extractor": (call(victims.extractor, 5), "pretrained is an int; it must be a Trained"),
    "join_head": (call(victims.join_head, 1, 2), "extractor is an int; it must be a Variables"),
    "split_head": (call(victims.split_head, 1), "the variables are no extractor with a head"),
    "on_features": (call(victims.on_features, HEAD, 1), "head is an int; it must be a Victim"),
    "linear_probe": (call(victims.linear_probe, None, SET, num_classes=2), "split is a Dataset"),
    "probe's classes": (
        call(victims.linear_probe, None, Split(SET, SET._replace(label=jnp.full(4, 2))),
             num_classes=2),
        "test labels run from 2 to 2; num_classes = 2 allows 0 to 1",
    ),
    "converge": (call(victims.convergent_training, HEAD, 1e-3, 4), "settings is a float"),
    "fit": (call(defenses.converged, HEAD, 1e-3), "settings is a float; it must be a"),
    "decoder": (call(victims.decoder_training, HEAD), "decoder is a Victim; it must be a"),
    "pretrain": (
        call(victims.pretrain, "-", KEY, SET, network="mlp", recipe=None, num_classes=2),
        "split is a Dataset; it must be a Split",
    ),
    "contrastive": (
        call(victims.pretrain, "-", KEY, Split(SET, SET), network="mlp", num_classes=2,
             recipe=victims.Recipe(1, 1, 0.1), contrastive="simclr"),
        "contrastive is a str; it must be a SimCLR or a MoCoV3",
    ),
    "with_added": (
        call(data.with_added, SET, "folder"),
        "poison is a str; it must be a Poisoned, such as poisoned.read(folder)",
    ),
    "with_poison": (call(data.with_poison, SET, "folder"), "poison is a str"),
    "game": (
        call(jp.attacks.total_gradient, HEAD, game="mnist"),
        "game is a str; it must be a Stackelberg, such as TGDA['mnist']",
    ),
    "tx": (call(jp.attacks.total_gradient, HEAD, tx=0.1), "it must be a GradientTransformation"),
    "victim": (call(jp.attacks.gradient_canceling, ARRAYS), "victim is a Variables; it must be"),
    "corruption": (
        call(jp.attacks.gradient_canceling, HEAD, corruption=0.5),
        "corruption = 0.5; it must be a Corruption, such as Corruption(radius=0.5), or None",
    ),
    "std": (call(jp.attacks.gradient_canceling, HEAD, std=0.5), "std = 0.5; it must be a seq"),
    "feature_targeted": (
        call(jp.attacks.feature_targeted, victims.Extractor(HEAD, ARRAYS), HEAD),
        "extractor is an Extractor; it must be a Victim",
    ),
    "constraint of random_points": (
        constrained(jp.attacks.random_points, num_classes=2), "constraint = 'box'; write",
    ),
    "constraint of feature_targeted": (
        constrained(jp.attacks.feature_targeted, HEAD, HEAD), "constraint = 'box'; write",
    ),
    "corrupt": (
        call(jp.attacks.parameter_corruption, KEY, HEAD, ARRAYS, SET, 0.5),
        "corruption is a float; it must be a Corruption",
    ),
    "more entries than there are": (
        call(jp.attacks.parameter_corruption, KEY, HEAD, ARRAYS, SET,
             jp.attacks.Corruption(num=10**6)),
        "num = 1000000; the network has 8 parameters",
    ),
    "run": (
        call(jp.run, FLIP, KEY, Split(SET, SET), num_steps=1),
        "data is a Split; an Attack runs on a Scenario",
    ),
    "train": (
        call(jp.run, victims.convergent_training(HEAD, SETTINGS, 4), KEY,
             jp.Scenario(SET, SET, jnp.arange(1)), num_steps=1),
        "data is a Scenario; a Training runs on a Split",
    ),
    "shares": (
        call(report.AddedConfig, shares=0.05),
        "shares = 0.05; they must be a sequence, such as (0.03, 0.1)",
    ),
    "an arm's shares": (
        arm(jp.attacks.label_flip, num_classes=2, shares=0.05), "shares = 0.05; they must be",
    ),
    "an arm's option": (
        arm(jp.attacks.label_flip, num_classes=2, foo=1),
        "label_flip: got an unexpected keyword argument 'foo'; it takes victim, num_classes",
    ),
    "an arm's factory": (arm(FLIP), "factory = Attack(...); it must be a function that makes an"),
    "the job's split": (job(split=SET), "split is a Dataset; it must be a Split"),
    "the job's arms": (job(arms={}), "there are no arms; name at least one"),
    "the job's players": (job(players=SETTINGS), "players is a ToConvergence; it must"),
    "followers": (player(followers=SETTINGS), "followers of player '' is a ToCon"),
    "reference": (player(reference="sgd"), "reference = 'sgd'; allowed are lbfgs"),
    "a player's extractor": (player(extractor=HEAD), "extractor of player '' is a Victim"),
    "a player's filters": (player(filters={"f": 3}), "filter 'f' is an int; it must be a Filter"),
    "a player's rows": (player(trusted=Split(SET, SET)), "trusted of player '' is a Split"),
    "window of a mean": (purify(defenses.mean(size=17)), "size = 17; of images of 8 x 8 pixels it"),
    "of a median": (purify(defenses.median(size=101)), "size = 101; of images of 8 x 8 pixels it"),
    "of a Gaussian": (purify(defenses.gaussian(size=17)), "size = 17; of images of 8 x 8 pixels"),
    "of a bilateral": (purify(defenses.bilateral(size=17)), "8 x 8 pixels it must be at most 15"),
    "cutout": (
        lambda: data.augment.cutout(16)(KEY, IMAGES),
        "size = 16; of images of 8 x 8 pixels it must be at most 8",
    ),
    "jpeg of floats": (
        purify(defenses.jpeg(), Dataset(IMAGES, SET.label[:2])),
        "images are float32; this purifier takes uint8 grey levels, as data.rounding.to_uint8 and",
    ),
    "projection of other classes": (
        purify(defenses.orthogonal_projection(num_classes=2), OTHERS),
        "labels of the training set run from 2 to 2; num_classes = 2 allows 0 to 1",
    ),
    "purifier": (purify(MIXUP), "purifier is a function; it must be a Purifier"),
    "purified": (purify(GRAY, Split(SQUARES, SQUARES)), "dataset is a Split; it must be a Dataset"),
    "a fit's data": (
        call(jp.run, GRAY, KEY, Split(SQUARES, SQUARES), num_steps=1),
        "data is a Split; a Purifier is fitted to a Dataset",
    ),
    "compose": (call(defenses.compose, GRAY), "a defense is a Purifier; compose takes"),
    "compose both": (call(defenses.compose, MIXUP, GRAY), "chain takes purifiers"),
    "compose a name": (call(defenses.compose, "mixup"), "a defense is a str; compose takes"),
    "chain": (call(defenses.chain, GRAY, MIXUP), "purifier is a function; it must be a"),
    "kld_targets": (
        one_target,
        "kld_targets = 3.0; they must be a sequence, such as (1.0, 3.0)",
    ),
    "settings of D-VAE": (
        call(defenses.dvae, DVAE, {"epochs": 1}), "settings is a dict; it must be a DVAESettings",
    ),
    "network of D-VAE": (call(defenses.dvae, HEAD), "network is a Victim; it must be a Dis"),
    "labels of D-VAE": (
        purify(defenses.dvae(DVAE), OTHERS),
        "labels run from 2 to 2; the D-VAE was built for 0 to 1",
    ),
    "num_clean": (
        call(jp.run, victims.convergent_training(HEAD, SETTINGS, 5), KEY, Split(SET, SET),
             num_steps=1),
        "num_clean = 5; the training set has 4 rows",
    ),
    "reach": (
        call(jp.hypergrad.reachability.reach, ARRAYS, ARRAYS, 0.1),
        "gradient is a Variables; it must be like head.params: its `.params`",
    ),
    "HYPO's surrogates": (
        at_surrogate(jp.attacks.hypocritical),
        "scenario.aux has an array of shape (2, 2) where (2,) is expected, of one network",
    ),
    "TAP's surrogates": (
        at_surrogate(jp.attacks.error_maximizing, num_classes=2),
        "scenario.aux has an array of shape (2,",
    ),
    "CANCELINGS": (lambda: jp.attacks.CANCELINGS["LR"], "CANCELINGS has no 'LR'; it has lr, nn"),
    "TGDA": (lambda: jp.attacks.TGDA["mnistt"], "exact; did you mean 'mnist'?"),
    "NORMALIZATION": (lambda: victims.recipes.NORMALIZATION["svhn"], "NORMALIZATION has no 'svhn'"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_it_is_one_line(name):
    made, line = ROWS[name]
    with pytest.raises(InputError) as error:
        made()
    assert line in str(error.value) and "\n" not in str(error.value)


def test_presets_are_frozen_mappings():
    with pytest.raises(TypeError):
        jp.attacks.TGDA["mine"] = jp.attacks.TGDA["mnist"]  # type: ignore
    assert jp.attacks.TGDA.get("mine") is None and "mine" not in jp.attacks.TGDA
    with pytest.raises(AttributeError, match="is called 'simclr'; there are moco_v3_cifar10, "):
        victims.extractor_recipes.simclr  # noqa: B018


def test_what_is_asked_for_passes():
    jp.check.kind((int, str), a=1, b="x")
    optimizer = optax.sgd(0.1)
    assert jp.attacks.total_gradient(HEAD, tx=optimizer).check is not None
