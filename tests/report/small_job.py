"""A whole main job in seconds. Run as a module it kills itself while it trains its last victims.

python -m tests.report.small_job RUNS
"""

import functools
import os
import pathlib
import signal
import sys

import jax

import jaxpoison as jp
from jaxpoison import loops
from jaxpoison.book import Book
from jaxpoison.report import StudyConfig, Trainee, arm, main_job, published
from jaxpoison.types import Dataset, Split
from jaxpoison.victims import recipes
from tests.attacks import tiny_generator

SHAPE, CLASSES, EPS, EPOCHS = (8, 8, 1), 3, 0.1, 4


@functools.cache
def split():
    """48 rows for training, 24 for testing."""
    every = jp.data.synthetic.blobs(jax.random.key(7), 72, CLASSES, SHAPE, noise=0.3)
    return Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(48), slice(48, None))))


def untrained_generator():
    """The arm of a generator as it was drawn; its folder is kept like that of a trained one."""
    return arm(
        tiny_generator.untrained,
        tiny_generator.network(SHAPE),
        eps=EPS,
        budget=jp.perturb.Budget("linf", EPS),
        expect="nothing much",
    )


def run(runs, *, data=None, num_steps=1, mesh=None, main="random-noise", arms=None, **options):
    """The record of clean data and noise on half of it, two victims each, after a surrogate."""
    noise = arm(
        jp.attacks.random_noise,
        eps=EPS,
        num_steps=num_steps,
        budget=jp.perturb.Budget("linf", EPS),
        expect="as [clean]",
    )
    victim = jp.models.mlp(SHAPE, CLASSES, hidden=(6,))
    config = {"runs": pathlib.Path(runs), "victims": 2, "share": 0.5}
    return main_job(
        "small",
        StudyConfig(**config | options),
        victim=victim,
        recipe=recipes.small(epochs=EPOCHS, batch_size=16),
        split=data or split(),
        source={"name": "blobs"},
        arms={"random-noise": noise} | (arms or {}),
        main=main,
        surrogate=Trainee(victim, recipes.small(epochs=1, batch_size=16)),
        mesh=mesh,
        published=[published("clean", 0.5, "nobody, table 1")],
    )


def die_in_the_last_arm():
    """A checkpoint after every step, and SIGKILL after the third of the victims of noise."""
    loops.run_chunks = functools.partial(loops.run_chunks, save_every=1)
    before = Book.record

    def record(book, start, rows):
        before(book, start, rows)
        if book.folder.parts[-2:] == ("victims", "random-noise") and start == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    Book.record = record


if __name__ == "__main__":
    die_in_the_last_arm()
    run(sys.argv[1])
