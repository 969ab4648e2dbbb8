"""A main job whose attack and victims are spread over all devices. Run as a module on each host:

python -m tests.report.hosts_job --runs RUNS --distributed HOST:PORT,NUM,ID
"""

import dataclasses
import functools
import os
import sys

import jaxpoison as jp
from jaxpoison import loops
from jaxpoison.book import Book
from jaxpoison.report import StudyConfig, Trainee, arm, command_line, main_job
from jaxpoison.victims import recipes
from tests.report import small_job

STEPS, SAVE_EVERY = 10, 4


@dataclasses.dataclass(frozen=True)
class Config(StudyConfig):
    """Settings of a job for several hosts."""

    victims: int = 4
    """As many as there are devices."""


def main(config):
    """The record of four restarts of TAP, and of four victims each on clean and poisoned data."""
    victim = jp.models.mlp(small_job.SHAPE, small_job.CLASSES, hidden=(6,))
    tap = arm(
        jp.attacks.error_maximizing,
        victim,
        eps=small_job.EPS,
        num_classes=small_job.CLASSES,
        num_steps=STEPS,
        budget=jp.perturb.Budget("linf", small_job.EPS),
        expect="worse than [clean]",
    )
    tap = tap._replace(attack=jp.over_devices(tap.attack, jp.device_mesh(), 4))
    return main_job(
        "hosts",
        config,
        victim=victim,
        recipe=recipes.small(epochs=3, batch_size=16),
        split=small_job.split(),
        source={"name": "blobs"},
        arms={"tap": tap},
        main="tap",
        surrogate=Trainee(victim, recipes.small(epochs=1, batch_size=16)),
    )


def save_often():
    """Checkpoints at fixed steps, and JAXPOISON_TEST_SLOW seconds more for every chunk."""
    loops.run_chunks = functools.partial(loops.run_chunks, save_every=SAVE_EVERY)
    loops.CHUNK_SECONDS = 0.0  # chunks of one step
    if pause := float(os.environ.get("JAXPOISON_TEST_SLOW", 0)):
        record = Book.record

        def slowly(book, start, rows):
            loops.time.sleep(pause)
            record(book, start, rows)

        Book.record = slowly


if __name__ == "__main__":
    save_often()
    command_line(main, Config, __doc__)
    sys.stdout.flush()
