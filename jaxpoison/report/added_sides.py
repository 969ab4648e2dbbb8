"""One player in a run of added points: what its followers see, and how they are trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import over, tree
from jaxpoison.data import with_added
from jaxpoison.data.poisoned import Poisoned
from jaxpoison.data.verification import floats
from jaxpoison.report.added_config import Follower, Player
from jaxpoison.report.judging import Exam
from jaxpoison.report.study import Study
from jaxpoison.types import Dataset, Key, Split, Training, TrainState, Variables
from jaxpoison.victims import (
    ToConvergence,
    convergent_training,
    extract,
    judge,
    victim_training,
)

__all__ = ["Side", "victim_name"]


def victim_name(player: str, follower: str) -> str:
    """As which a follower stands in the record."""
    return f"{player}/{follower}" if player else follower


class Side:
    """A player's followers in one run.

    Args:
      name: of the player.
      player: who it is.
      split: clean images.
      study: the run.
      key: of the victims; the same for all training sets, so that seeds are paired.
      num: victims of a training that draws something.
      chunk: of them side by side, as in `over_restarts`.
      as_float: whether followers are given floats throughout, because some points are no images:
        one program for each number of rows.

    Attributes:
      train: by space, the clean training set as attacks know it.
      test: likewise the test set.
      clean: by follower, what its victims of the clean set ended as.
    """

    def __init__(
        self,
        name: str,
        player: Player,
        split: Split,
        study: Study,
        key: Key,
        *,
        num: int,
        chunk: int | None,
        as_float: bool,
    ):
        self.name, self.player, self._study, self._key = name, player, study, key
        self._num, self._chunk, self._as_float = num, chunk, as_float
        self.train, self.test = {"input": split.train}, {"input": split.test}
        self.trusted: Any = player.trusted
        if player.extractor is not None:
            self.train["features"] = extract(player.extractor, split.train)
            self.test["features"] = extract(player.extractor, split.test)
            if isinstance(self.trusted, Dataset):
                self.trusted = extract(player.extractor, self.trusted)
        self._trainings: dict[tuple[str, int], Training] = {}
        self.clean: dict[str, TrainState] = {}

    @property
    def seen(self) -> str:
        """The space in which followers learn."""
        return "input" if self.player.extractor is None else "features"

    @property
    def reference(self) -> Variables:
        """The clean network that attacks know."""
        return tree.take(self.clean[self.player.reference].variables, 0)

    def learn_clean(self, expect: str) -> None:
        """Train all followers on the clean set."""
        train = self._floats(self.train[self.seen])
        for follower in self.player.followers:
            self.clean[follower] = self.learn(follower, "clean", Exam(self.split(train), expect))

    def split(self, train: Dataset) -> Split:
        """A training set as followers see it, and the test set."""
        return Split(train, self.test[self.seen])

    def poisoned(self, poison: Poisoned) -> Dataset:
        """The clean set and the added points, as followers see them."""
        domain, extractor = poison.manifest.domain, self.player.extractor
        if extractor is None:
            return self._floats(with_added(self.train["input"], poison))
        clean, added = self.train["features"], poison.dataset
        if domain != "features":
            added = extract(extractor, added)
        image = jnp.concatenate([clean.image, added.image])
        return Dataset(image, jnp.concatenate([clean.label, added.label]))

    def learn(self, follower: str, arm: str, exam: Exam) -> TrainState:
        """Train the victims of one follower and judge them; the entry is in the record."""
        how, num = self.player.followers[follower], len(exam.split.train.label)
        return self._study.judging.retrain(
            arm,
            exam,
            self.player.victim,
            self.training(follower, num),
            self._key,
            epochs=epochs(how),
            network=victim_name(self.name, follower),
            evaluation=evaluation(how),
        )

    def learn_filtered(self, follower: str, part: str, train: Dataset) -> Any:
        """The accuracy of victims of what a filter left: an Interval."""
        how, split = self.player.followers[follower], self.split(train)
        training = self.training(follower, len(train.label))
        name = f"{victim_name(self.name, follower)}/{part}"
        state, info, _ = self._study.work.run(
            "filtered", name, training, self._key, split, epochs(how)
        )
        found = judge(self.player.victim, state, info, *split, **(evaluation(how) or {}))
        return found.final_accuracy

    def starts(self, follower: str) -> list[Variables]:
        """Where the victims of a follower that converges begin, one for each."""
        training = self.training(follower, len(self.train["input"].label))
        every = training.init(self._key, None).variables
        return [tree.take(every, r) for r in range(len(jax.tree.leaves(every)[0]))]

    def training(self, follower: str, num_rows: int) -> Training:
        """Of all seeds on that many rows; made once, so that it compiles once."""
        how = self.player.followers[follower]
        converges = isinstance(how, ToConvergence)
        place = follower, 0 if converges else num_rows
        if place not in self._trainings:
            num = 1 if converges and how.start == "zeros" else self._num
            one = self._single(how, num_rows)
            self._trainings[place] = over.spread(one, num, chunk=self._chunk)
        return self._trainings[place]

    def _single(self, how: Follower, num_rows: int) -> Training:
        if isinstance(how, ToConvergence):
            num_clean = len(self.train["input"].label)
            return convergent_training(self.player.victim, how, num_clean)
        return victim_training(self.player.victim, how, num_rows)

    def _floats(self, dataset: Dataset) -> Dataset:
        if not self._as_float or dataset.image.dtype != jnp.uint8:
            return dataset
        return Dataset(jnp.asarray(floats(np.asarray(dataset.image))), dataset.label)


def epochs(how: Follower) -> int:
    """Steps of its training."""
    return 1 if isinstance(how, ToConvergence) else how.epochs


def evaluation(how: Follower) -> dict[str, Any] | None:
    """How its victims are judged."""
    return None if isinstance(how, ToConvergence) else how.evaluation


def distance(state: TrainState, target: Variables) -> list[float] | None:
    """||w - target||_2 of every victim; None where their parameters are other ones."""
    mine, theirs = (jax.tree.leaves(x.params) for x in (state, target))
    same = jax.tree.structure(state.params) == jax.tree.structure(target.params)
    if not same or any(x.shape[1:] != y.shape for x, y in zip(mine, theirs, strict=True)):
        return None
    apart = [x - y[None] for x, y in zip(mine, theirs, strict=True)]
    return [float(tree.norm(tree.take(apart, i))) for i in range(len(mine[0]))]
