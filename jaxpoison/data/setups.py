"""Who is attacked by which images: target, wanted class and the training rows that may change.

A setup comes from an integer key (`from_key`, the published draw order), from a triplet
(`from_triplet`), from the public poisoning benchmark as arrays (`from_benchmark`) or as the
published pickles (`from_pickle`), or from your own rows (`Setup`).
"""

import os
import pathlib
import re
import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxpoison import check
from jaxpoison.data.check_dataset import check_labels
from jaxpoison.data.setup_files import Published, npz_setups, pickled_setups
from jaxpoison.types import Dataset, InputError, Scenario, Split

__all__ = [
    "PAPER_KEYS",
    "THREAT_MODELS",
    "Setup",
    "from_benchmark",
    "from_key",
    "from_pickle",
    "from_triplet",
    "without_targets",
]

PAPER_KEYS = (
    2000000000,
    2100000000,
    2110000000,
    2111000000,
    2111100000,
    2111110000,
    2111111000,
    2111111100,
    2111111110,
    2111111111,
)
"""The ten keys of the CIFAR-10 tables of Geiping et al. 2021."""

THREAT_MODELS = (
    "single-class",
    "third-party",
    "self-betrayal",
    "random-subset",
    "random-subset-random-targets",
)
"""Whose images may change; see `from_key`."""

_LARGEST_KEY = 2**32 - 5  # the generator's seed is key + 4


class Setup(NamedTuple):
    """One targeted attack to be made: rows and labels, no images.

    Attributes:
      name: plain, also a folder name: "key-2000000000", "cifar10_from_scratch-007".
      poison_rows: [P] rows of the training set that may change, in the drawn order.
      target_rows: [T] rows of the test set.
      wanted: [T] labels that the attacker wants for them (y_adv).
      true: [T] their own labels.
    """

    name: str
    poison_rows: Int[np.ndarray, " p"]
    target_rows: Int[np.ndarray, " t"]
    wanted: Int[np.ndarray, " t"]
    true: Int[np.ndarray, " t"]

    def scenario(self, split: Split, aux: Any = ()) -> Scenario:
        """What an attack of this setup is given; the goal is the targets with the wanted labels.

        Errors: as `check`.
        """
        self.check(split)
        goal = Dataset(split.test.image[self.target_rows], jnp.asarray(self.wanted, jnp.int32))
        return Scenario(split.train, goal, jnp.asarray(self.poison_rows, jnp.int32), aux)

    def check(self, split: Split) -> None:
        """Whether this setup is of these data.

        Errors:
          InputError naming the setup: rows that the sets do not have or that stand in it twice, no
          poison, no target, a wanted label that is no class, a target with another true label.
        """
        try:
            self._check(np.asarray(split.train.label), np.asarray(split.test.label))
        except InputError as error:
            raise InputError(f"setup {self.name}: {error}") from error

    def _check(self, train_label: np.ndarray, test_label: np.ndarray) -> None:
        check.distinct_rows("poison_rows", self.poison_rows, len(train_label))
        check.distinct_rows("target_rows", self.target_rows, len(test_label))
        num = len(self.target_rows)
        if not len(self.poison_rows) or not num:
            raise InputError("it has no poison or no target; at least one of each is needed")
        for name, label in (("wanted", self.wanted), ("true", self.true)):
            if np.shape(label) != (num,):
                raise InputError(f"{name} has shape {np.shape(label)}; {num} targets ask for one")
            check_labels(np.asarray(label), int(train_label.max()) + 1)
        found = test_label[self.target_rows]
        if (found != self.true).any():
            i = int(np.argmax(found != self.true))
            raise InputError(
                f"the target in test row {self.target_rows[i]} has label {found[i]} in these data, "
                f"not {self.true[i]}: other data, or in another order"
            )

    def extra(self, test_split: str = "test") -> dict[str, Any]:
        """What the manifest of this setup's poison folder says under `extra`, as JSON values.

        {setup, target: {split, row} of the first, targets: {rows, wanted, true}, poison_rows} for a
        folder of the whole training set: `poison_rows` keeps the drawn order, which its mask does
        not. `export(path, "benchmark")` reads them.
        """
        targets = {"rows": self.target_rows, "wanted": self.wanted, "true": self.true}
        return {
            "setup": self.name,
            "target": {"split": test_split, "row": int(self.target_rows[0])},
            "targets": {name: np.asarray(x).tolist() for name, x in targets.items()},
            "poison_rows": np.asarray(self.poison_rows).tolist(),
        }


def from_key(
    key: int,
    train_label: Any,
    test_label: Any,
    *,
    budget: float = 0.01,
    num_targets: int = 1,
    threat_model: str = "single-class",
    num_classes: int | None = None,
) -> Setup:
    """The setup that the published code draws from an integer key, bit for bit.

    NumPy's legacy generator, seeded with key + 4, draws the target class from 0..L-1, the intended
    class from the others, then, by threat model, whose images may change:

    - "single-class": the intended class's.
    - "third-party": those of a third class, drawn next.
    - "self-betrayal": the target class's.
    - "random-subset": anyone's.
    - "random-subset-random-targets": anyone's; targets are any test images, each with its own
      intended class, drawn next from 0..L-1 (it may be the true one).

    Then ceil(budget N) poisons of those, without replacement, then the targets, likewise.

    Args:
      key: 0 to 2^32 - 5.
      train_label: [N] labels of the training set, in the source's order.
      test_label: [num_test] labels of the test set.
      budget: poisons as a share of all N training images, in (0, 1].
      num_targets: T; all of one class, with the same intended class, but see above.
      threat_model: one of `THREAT_MODELS`.
      num_classes: L; None is the largest training label + 1.

    Returns:
      The setup, poisons in the drawn order. Its classes do not depend on the budget, all rows do.

    Errors:
      InputError for a value that is not allowed, or a class without (enough) images. A class with
      fewer images than the budget asks for gives all it has, with a warning.
    Source: Geiping et al. 2021, their published code; the ten keys are `PAPER_KEYS`.
    """
    check.at_least(0, key=key)
    if key > _LARGEST_KEY:
        raise InputError(f"key = {key}; it must be at most {_LARGEST_KEY}")
    check.at_least(1, num_targets=num_targets)
    check.one_of(THREAT_MODELS, threat_model=threat_model)
    train_label, test_label, num = _labels(train_label, test_label, num_classes)
    least = 3 if threat_model == "third-party" else 2
    if num < least:
        raise InputError(f"{num} classes; {threat_model} needs at least {least}")
    random = np.random.RandomState(int(key) + 4)
    target_class = int(random.randint(num))
    others = [c for c in range(num) if c != target_class]
    intended = int(random.choice(others))
    wanted = np.full(num_targets, intended)
    poison_class: int | None = intended
    if threat_model == "third-party":
        poison_class = int(random.choice([c for c in others if c != intended]))
    elif threat_model == "self-betrayal":
        poison_class = target_class
    elif threat_model != "single-class":
        poison_class = None
    anyone = threat_model == "random-subset-random-targets"
    if anyone:
        wanted = random.randint(num, size=num_targets)
    rows = _of_class(train_label, poison_class, "training")
    poisons = random.choice(rows, size=_num_poisons(budget, train_label, rows), replace=False)
    rows = _of_class(test_label, None if anyone else target_class, "test")
    if num_targets > len(rows):
        raise InputError(f"num_targets = {num_targets}; there are only {len(rows)} such images")
    targets = random.choice(rows, size=num_targets, replace=False)
    name = f"key-{int(key)}" + ("" if threat_model == "single-class" else f"-{threat_model}")
    name += f"-{num_targets}-targets" if num_targets > 1 else ""
    return _setup(name, poisons, targets, wanted, test_label[targets])


def from_triplet(triplet: str, train_label: Any, test_label: Any, *, budget: float = 0.01) -> Setup:
    """The setup "a-b-c": test image c, of class a, is to be read as b, by images of class b.

    The poisons are the first ceil(budget N) training images of class b. c is the row in the whole
    test set, as in the published code (whose comment takes it for a position in the class).

    Args:
      triplet: three whole numbers, such as "5-6-123".
      train_label: [N] labels of the training set.
      test_label: labels of the test set.
      budget: as in `from_key`.

    Errors:
      InputError for another form, a = b, a row or class that is not there, an image of another
      class than a. A class with fewer images than the budget gives all, with a warning.
    Source: Geiping et al. 2021, their published code; MetaPoison (Huang et al. 2020) likewise.
    """
    parts = re.fullmatch(r"(\d{1,9})-(\d{1,9})-(\d{1,9})", triplet, re.ASCII)
    if parts is None:
        raise InputError(
            f"triplet = {triplet!r}; allowed is TARGET_CLASS-INTENDED_CLASS-TEST_ROW, as 5-6-123"
        )
    train_label, test_label, _ = _labels(train_label, test_label, None)
    true, wanted, row = map(int, parts.groups())
    if wanted == true:
        raise InputError(f"triplet = {triplet!r}; the intended class must be another one")
    if row >= len(test_label):
        raise InputError(f"triplet = {triplet!r}; the test set has {len(test_label)} rows")
    if test_label[row] != true:
        raise InputError(
            f"triplet = {triplet!r}; test row {row} is of class {test_label[row]}, not {true}"
        )
    rows = _of_class(train_label, wanted, "training")
    poisons = rows[: _num_poisons(budget, train_label, rows)]
    return _setup(f"triplet-{true}-{wanted}-{row}", poisons, [row], [wanted], [true])


def from_benchmark(path: str | os.PathLike[str]) -> list[Setup]:
    """The setups of the public poisoning benchmark, from plain arrays.

    Args:
      path: .npz with integer arrays target_class [S], target_index [S] (test row), base_class [S]
        (wanted) and base_indices [S, P] (training rows, in the published order).

    Returns:
      S setups (the benchmark has 100 a file), named after the file: "cifar10_from_scratch-007". A
      training row that a setup names twice (cifar10_transfer_learning 078 and 084 do) counts once,
      where it stands first.

    Errors:
      InputError for a missing or damaged file, or arrays that are not these.
    Source: Schwarzschild et al. 2021.
    """
    return _published(pathlib.Path(path).stem, npz_setups(path))


def from_pickle(path: str | os.PathLike[str]) -> list[Setup]:
    """The setups of the public poisoning benchmark, from its own pickles, which are never run.

    The file is read opcode by opcode into lists, dicts, text, whole numbers and NumPy integers and
    arrays of them; whatever asks for more is refused before anything is made of it.

    Args:
      path: a pickled list of dicts with the keys "target class", "target index", "base class" and
        "base indices".

    Returns:
      As `from_benchmark`. A file whose SHA-256 is one of the four published ones gives its name,
      such as "cifar10_from_scratch-007", whatever it is called; of any other file setup 7 is
      "unknown-HASH-007" with the first eight digits of its SHA-256.

    Errors:
      InputError, one line, for a missing, damaged, too large or hostile file.
    """
    return _published(*pickled_setups(path))


def without_targets(split: Split, setup: Setup) -> Split:
    """The split whose test set lacks the targets: what clean accuracy is measured on."""
    kept = np.delete(np.arange(len(split.test.label)), setup.target_rows)
    return split._replace(test=Dataset(split.test.image[kept], split.test.label[kept]))


def _published(name: str, published: list[Published]) -> list[Setup]:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    return [
        _setup(f"{name}-{i:03d}", one.rows, [one.target_row], [one.wanted], [one.true])
        for i, one in enumerate(published)
    ]


def _setup(name: str, poisons: Any, targets: Any, wanted: Any, true: Any) -> Setup:
    return Setup(name, *(np.asarray(x, np.int64) for x in (poisons, targets, wanted, true)))


def _labels(
    train_label: Any, test_label: Any, num_classes: int | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Both as sound NumPy arrays, and the number of classes."""
    train, test = np.asarray(train_label), np.asarray(test_label)
    for name, label in (("train_label", train), ("test_label", test)):
        if label.ndim != 1 or not label.size:
            raise InputError(f"{name} has shape {label.shape}; allowed is [N] with N at least 1")
        check_labels(label, num_classes)
    return train, test, int(train.max()) + 1 if num_classes is None else num_classes


def _of_class(label: np.ndarray, wanted: int | None, what: str) -> np.ndarray:
    """Rows of a class (of all, if None), ascending."""
    if wanted is None:
        return np.arange(len(label))
    rows = np.flatnonzero(label == wanted)
    if not rows.size:
        raise InputError(f"class {wanted} has no {what} image")
    return rows


def _num_poisons(budget: float, label: np.ndarray, rows: np.ndarray) -> int:
    """ceil(budget N), but no more than there are rows."""
    check.number(above=0, most=1, budget=budget)
    num = int(np.ceil(budget * len(label)))
    if num > len(rows):
        warnings.warn(
            f"budget = {budget:g} of {len(label)} images is {num}; their class has {len(rows)}, "
            "all of which are taken",
            stacklevel=3,
        )
    return min(num, len(rows))
