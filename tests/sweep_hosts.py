"""A small sweep of setups, spread over all devices. Run as a module on each host:

python -m tests.sweep_hosts OUT.npz HOST:PORT,NUM,ID
"""

import functools
import sys

import jax
import numpy as np
from rich.console import Console

import jaxpoison as jp

SEED = 5
SHAPE, CLASSES, PER, STEPS = (8, 8, 1), 3, 2, 2


@functools.cache
def study():
    """(aux, attack, split, setups): error-maximizing noise on eight setups of six images."""
    victim = jp.models.mlp(SHAPE, CLASSES, hidden=(4,))
    sets = jp.data.synthetic.blobs(jax.random.key(1), 90, CLASSES, SHAPE)
    image = np.asarray(255 * sets.image, np.uint8)
    train, test = (
        jp.Dataset(jax.numpy.asarray(image[part]), sets.label[part])
        for part in (slice(60), slice(60, 90))
    )
    attack = jp.attacks.error_maximizing(victim, eps=0.1, num_classes=CLASSES, augment=None)
    setups = [
        jp.data.setups.from_key(i, train.label, test.label, budget=0.1, num_classes=CLASSES)
        for i in range(8)
    ]
    return victim.init(jax.random.key(2)), attack, jp.Split(train, test), setups


def scenarios(numbers):
    """The sweep of some of the setups, in that order."""
    aux, _, split, setups = study()
    return jp.data.stack_setups([setups[i] for i in numbers], split, aux, numbers=numbers)


@functools.cache
def crafted(mesh=None):
    """The attack, two restarts, over setups."""
    return jp.over_setups(jp.over_restarts(study()[1], PER), mesh)


@functools.cache
def seeds():
    """A victim's training, two seeds."""
    victim = jp.models.mlp(SHAPE, CLASSES, hidden=(4,))
    recipe = jp.victims.Recipe(epochs=1, batch_size=20, learning_rate=0.1)
    return jp.over_restarts(jp.victims.victim_training(victim, recipe, 60), PER)


@functools.cache
def trained(mesh=None):
    """That over setups."""
    return jp.over_setups(seeds(), mesh)


if __name__ == "__main__":
    jp.hosts.start(distributed=sys.argv[2])
    mesh = jp.device_mesh(axis="setup")
    state, info, _ = jp.run_chunks(
        crafted(mesh),
        jax.random.key(SEED),
        scenarios((3, 0, 7, 5)),
        num_steps=STEPS,
        console=Console(quiet=True),
    )
    leaves = jax.tree.leaves((jp.hosts.fetch(state), info))
    jp.hosts.first(lambda: np.savez(sys.argv[1], *leaves))
