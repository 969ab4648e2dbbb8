"""Published data-poisoning attacks and the defenses against them, as pure functions in JAX."""

from jaxpoison import attacks, check, data, hosts, hypergrad, models, perturb, tree, victims
from jaxpoison.ensemble import over_ensemble, over_networks
from jaxpoison.loops import NonFiniteError, run, run_chunks
from jaxpoison.over import best_of, device_mesh, over_devices, over_restarts, spread
from jaxpoison.sweep import over_setups
from jaxpoison.types import (
    Attack,
    Batch,
    Bilevel,
    Dataset,
    Game,
    Generator,
    Hypergrad,
    InputError,
    Learner,
    Objective,
    Perturbation,
    Replaced,
    Scenario,
    Split,
    Sweep,
    Training,
    TrainState,
    Variables,
    Victim,
)

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "Batch",
    "Bilevel",
    "Dataset",
    "Game",
    "Generator",
    "Hypergrad",
    "InputError",
    "Learner",
    "NonFiniteError",
    "Objective",
    "Perturbation",
    "Replaced",
    "Scenario",
    "Split",
    "Sweep",
    "TrainState",
    "Training",
    "Variables",
    "Victim",
    "attacks",
    "best_of",
    "check",
    "data",
    "device_mesh",
    "hosts",
    "hypergrad",
    "models",
    "over_devices",
    "over_ensemble",
    "over_networks",
    "over_restarts",
    "over_setups",
    "perturb",
    "run",
    "run_chunks",
    "spread",
    "tree",
    "victims",
]
