"""Setups: the published draws, in closed form for every threat model, and what a setup checks."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.data import setups
from jaxpoison.types import Dataset, InputError, Split

# witches_brew.md 5.2: key, target class, intended class, ordinal of the target among its class,
# first five ordinals of the poisons among theirs, sum of all 500.
TABLE = [
    (2000000000, 5, 6, 876, [1997, 1682, 1863, 2408, 3307], 1213011),
    (2100000000, 6, 9, 172, [1373, 2315, 3716, 4003, 1956], 1211692),
    (2110000000, 6, 2, 228, [4241, 3292, 4464, 3119, 1526], 1283291),
    (2111000000, 0, 5, 491, [3744, 3659, 2035, 271, 31], 1215548),
    (2111100000, 0, 8, 125, [3918, 3858, 2728, 2466, 1125], 1217937),
    (2111110000, 3, 0, 734, [408, 2265, 2848, 2995, 1119], 1260815),
    (2111111000, 1, 6, 340, [1973, 1052, 2815, 1009, 114], 1303282),
    (2111111100, 9, 3, 372, [4512, 634, 474, 3832, 3352], 1264124),
    (2111111110, 1, 8, 989, [1806, 2328, 392, 297, 1610], 1232150),
    (2111111111, 1, 3, 291, [2897, 1596, 139, 3116, 3890], 1259496),
]
RNG = np.random.default_rng(0)
TRAIN = RNG.permutation(np.repeat(np.arange(10), 5000))
TEST = RNG.permutation(np.repeat(np.arange(10), 1000))
SMALL = np.tile(np.arange(4), 25)  # 100 rows, row i of class i % 4


def ordinals(rows, label, wanted):
    """Which of its class each row is, counted from 0; every row must be of that class."""
    assert (label[rows] == wanted).all()
    return (np.cumsum(label == wanted) - 1)[rows]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: str(row[0]))
def test_the_ten_keys_of_the_paper(row):
    key, target_class, intended, target, first, total = row
    setup = setups.from_key(key, TRAIN, TEST)
    assert setup.name == f"key-{key}"
    assert setup.wanted.tolist() == [intended] and setup.true.tolist() == [target_class]
    assert ordinals(setup.target_rows, TEST, target_class).tolist() == [target]
    found = ordinals(setup.poison_rows, TRAIN, intended)
    assert found[:5].tolist() == first and len(set(found.tolist())) == 500 and found.sum() == total


def test_the_ten_keys_on_the_real_labels(shared_data):
    with np.load(shared_data / "cifar10" / "labels.npz") as file:
        train, test = (file[name] for name in ("train_label", "test_label"))
    assert tuple(row[0] for row in TABLE) == setups.PAPER_KEYS
    for key, target_class, intended, target, first, total in TABLE:
        setup = setups.from_key(key, train, test)
        assert ordinals(setup.target_rows, test, target_class).tolist() == [target]
        found = ordinals(setup.poison_rows, train, intended)
        assert found[:5].tolist() == first and found.sum() == total


@pytest.mark.parametrize("key", [0, 7, 2**32 - 5])
@pytest.mark.parametrize("num_targets", [1, 3])
@pytest.mark.parametrize("threat_model", setups.THREAT_MODELS)
def test_every_threat_model_takes_what_it_says(threat_model, num_targets, key):
    how = {"budget": 0.1, "num_targets": num_targets}
    setup = setups.from_key(key, SMALL, SMALL, threat_model=threat_model, **how)
    plain = setups.from_key(key, SMALL, SMALL, **how)
    again = setups.from_key(key, SMALL, SMALL, threat_model=threat_model, **how)
    assert all(np.array_equal(a, b) for a, b in zip(setup, again, strict=True))
    assert len(set(setup.poison_rows.tolist())) == 10
    assert len(set(setup.target_rows.tolist())) == len(setup.wanted) == num_targets
    np.testing.assert_array_equal(setup.true, setup.target_rows % 4)
    classes = set((setup.poison_rows % 4).tolist())
    if threat_model != "random-subset-random-targets":
        assert len(set(setup.true)) == len(set(setup.wanted)) == 1
        assert setup.wanted[0] != setup.true[0]  # the first two draws are those of every model
        assert (setup.true[0], setup.wanted[0]) == (plain.true[0], plain.wanted[0])
    if threat_model == "single-class":
        assert classes == {setup.wanted[0]}
    elif threat_model == "self-betrayal":
        assert classes == {setup.true[0]}
    elif threat_model == "third-party":
        assert len(classes) == 1 and not classes & {setup.wanted[0], setup.true[0]}
    else:
        assert len(classes) > 1
    split = Split(*(Dataset(np.zeros((100, 1, 1, 1), np.uint8), SMALL) for _ in range(2)))
    setup.check(split)


@pytest.mark.parametrize("threat_model", setups.THREAT_MODELS)
def test_the_order_of_the_draws(threat_model):
    """The draws of section 5.1, written again as they stand there, of the global generator."""
    before = np.random.get_state()
    np.random.seed(11 + 4)
    target_class = np.random.randint(0, 4)
    others = [c for c in range(4) if c != target_class]
    intended = [np.random.choice(others)] * 2
    pool, goal = range(100), range(100)
    if threat_model == "single-class":
        pool = range(intended[0], 100, 4)
    elif threat_model == "third-party":
        pool = range(np.random.choice([c for c in others if c != intended[0]]), 100, 4)
    elif threat_model == "self-betrayal":
        pool = range(target_class, 100, 4)
    if threat_model == "random-subset-random-targets":
        intended = np.random.randint(0, 4, size=2)
    else:
        goal = range(target_class, 100, 4)
    poisons = np.random.choice(list(pool), size=10, replace=False)
    targets = np.random.choice(list(goal), size=2, replace=False)
    np.random.set_state(before)
    setup = setups.from_key(
        11, SMALL, SMALL, budget=0.095, num_targets=2, threat_model=threat_model
    )
    assert setup.poison_rows.tolist() == poisons.tolist()
    assert setup.target_rows.tolist() == targets.tolist()
    assert setup.wanted.tolist() == list(intended)


def test_a_budget_beyond_the_class_takes_it_all_and_warns():
    with pytest.warns(UserWarning, match="budget = 0.5 of 100 images is 50; their class has 25"):
        setup = setups.from_key(3, SMALL, SMALL, budget=0.5)
    assert sorted(setup.poison_rows) == list(range(setup.wanted[0], 100, 4))
    with pytest.warns(UserWarning, match="their class has 25"):
        assert len(setups.from_triplet("0-1-4", SMALL, SMALL, budget=1.0).poison_rows) == 25
    everyone = setups.from_key(3, SMALL, SMALL, budget=1.0, threat_model="random-subset")
    assert sorted(everyone.poison_rows) == list(range(100))


def test_a_triplet_names_the_test_row_and_takes_the_first_of_the_class():
    setup = setups.from_triplet("2-1-6", SMALL, SMALL, budget=0.05)
    assert setup.name == "triplet-2-1-6"
    assert setup.poison_rows.tolist() == [1, 5, 9, 13, 17]
    assert (setup.target_rows.tolist(), setup.wanted.tolist(), setup.true.tolist()) == (
        [6], [1], [2],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: setups.from_key(-1, SMALL, SMALL), "key = -1; it must be at least 0"),
        (lambda: setups.from_key(2**32 - 4, SMALL, SMALL), "it must be at most 4294967291"),
        (lambda: setups.from_key(0, SMALL, SMALL, budget=0), "budget = 0; it must be"),
        (lambda: setups.from_key(0, SMALL, SMALL, num_targets=0), "num_targets = 0"),
        (lambda: setups.from_key(0, SMALL, SMALL, num_targets=26), "only 25 such images"),
        (lambda: setups.from_key(0, SMALL, SMALL, threat_model="x"), "allowed are single-class"),
        (lambda: setups.from_key(0, SMALL % 2, SMALL % 2, threat_model="third-party"),
         "2 classes; third-party needs at least 3"),
        (lambda: setups.from_key(0, SMALL * 0, SMALL), "1 classes; single-class needs"),
        (lambda: setups.from_key(0, SMALL, SMALL, num_classes=3), "label 3 of row 3 is outside"),
        (lambda: setups.from_key(0, SMALL, SMALL[:0]), "test_label has shape"),
        (lambda: setups.from_key(0, SMALL, SMALL * 0 + 3), "class 2 has no test image"),
        (lambda: setups.from_triplet("2-2-6", SMALL, SMALL), "the intended class must be another"),
        (lambda: setups.from_triplet("2-1", SMALL, SMALL), "allowed is TARGET_CLASS-INTENDED"),
        (lambda: setups.from_triplet("2-1-100", SMALL, SMALL), "the test set has 100 rows"),
        (lambda: setups.from_triplet("2-1-5", SMALL, SMALL), "test row 5 is of class 1, not 2"),
        (lambda: setups.from_triplet("2-7-6", SMALL, SMALL), "class 7 has no training image"),
    ],
)  # fmt: skip
def test_bad_words_are_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def split_of(label=SMALL):
    image = np.arange(len(label) * 4, dtype=np.uint8).reshape(-1, 2, 2, 1)
    return Split(Dataset(image, label), Dataset(jnp.asarray(image[::-1]), jnp.asarray(label)))


def test_a_scenario_has_the_target_with_the_wanted_label_and_the_drawn_order():
    split = split_of()
    setup = setups.from_key(1, SMALL, SMALL, budget=0.1, num_targets=2)
    scenario = setup.scenario(split, aux=(1,))
    assert scenario.index.tolist() == setup.poison_rows.tolist() != sorted(setup.poison_rows)
    np.testing.assert_array_equal(scenario.goal.image, split.test.image[setup.target_rows])
    assert scenario.goal.label.tolist() == setup.wanted.tolist() and scenario.aux == (1,)
    rest = jp.data.without_targets(split, setup).test
    kept = [i for i in range(100) if i not in setup.target_rows]
    assert rest.label.tolist() == SMALL[kept].tolist()
    np.testing.assert_array_equal(rest.image, split.test.image[np.asarray(kept)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poison_rows": [1, 100]}, "poison_rows runs from 1 to 100; allowed are 0 to 99"),
        ({"poison_rows": [1, 1]}, "poison_rows names a row twice"),
        ({"poison_rows": [0.5]}, "poison_rows is float64; it must be an array of whole numbers"),
        ({"poison_rows": np.zeros(0, int)}, "it has no poison or no target"),
        ({"target_rows": [-1]}, "target_rows runs from -1 to -1"),
        ({"wanted": [4]}, "label 4 of row 0 is outside"),
        ({"wanted": [1, 1]}, r"wanted has shape \(2,\); 1 targets ask for one"),
        ({"true": [3]}, "the target in test row 6 has label 2 in these data, not 3"),
    ],
)
def test_a_setup_of_other_data_is_one_line(change, message):
    setup = setups.from_triplet("2-1-6", SMALL, SMALL, budget=0.05)
    bad = setup._replace(**{name: np.asarray(value) for name, value in change.items()})
    with pytest.raises(InputError, match=f"setup triplet-2-1-6: {message}") as caught:
        bad.scenario(split_of())
    assert "\n" not in str(caught.value)
