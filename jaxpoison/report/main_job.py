"""The main job in one call: every arm is crafted, stored, verified, trained on and judged."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxpoison.report.arms import Arm, Stored
from jaxpoison.report.derived import Derived
from jaxpoison.report.job import job
from jaxpoison.report.preparation import Trainee
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.types import InputError, Split, Victim
from jaxpoison.victims import Classical, Recipe, Transfer

__all__ = ["main_job", "transfer_job"]


def main_job(
    experiment: str,
    config: StudyConfig,
    *,
    victim: Victim,
    recipe: Recipe,
    split: Split,
    source: dict[str, Any],
    arms: Mapping[str, Arm | Stored | Derived],
    main: str,
    clean: str = "the reference",
    surrogate: Trainee | None = None,
    transfer: Transfer | None = None,
    published: list[dict[str, Any]] | None = None,
    chunk: int | None = 1,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Clean training set and all arms, `config.victims` fresh victims each; resumes on its own.

    `config.share` of the training rows may change; the goal set of the scenario is the training
    set, and the test set is read by evaluation alone. All arms share rows, victim seeds, the attack
    key and the compiled training. `config.probes` are further sets that victims are judged on.
    Where the attack of an arm, else that of `main`, has a `label_map`, the success rate is taken on
    the clean test set: the share that is read as the map says.

    Args:
      experiment: name, the first level below `config.runs`.
      config: the settings; `seed`, `victims`, `craft_seeds`, `share` and `probes` are read.
      victim: network of the victims.
      recipe: how victims are trained.
      split: clean training set and test set.
      source: where the training set came from, as `data.load` takes it.
      arms: by name; a name is also a folder. See `arm`, `control`, `sweep`, `stored`, and for sets
        made of another arm's poison `shares` and `permuted`.
      main: the arm the experiment is about.
      clean: what to expect of the clean set.
      surrogate: a network to train on clean data, passed as `scenario.aux`; None for none.
      transfer: the pretrained network that victims start from, see `victims.transfer`: a new last
        layer on it, or all of it; None is from scratch. A surrogate has its own.
      published: other people's numbers, see `report.published`.
      chunk: victims side by side, as in `over_restarts`: None for dense nets, 1 for convolutions,
        which are then spread over all devices.
      accumulate: micro-batches per update of victims and surrogate, see `victims.learner`.
      mesh: spreads every batch of theirs over its axis "batch", see `victims.training`; seeds are
        then trained one after another.

    Returns: the record, also in result.json.
    Raises: NonFiniteError as in `run_chunks`; InputError as in `Study`, and for unsound data, a
      network they do not fit, a label it has no logit for, a batch larger than the set, or an
      attack that cannot start, before anything is written or removed.
    """
    trainee = Trainee(victim, recipe, transfer)
    return job(
        experiment,
        config,
        {"": trainee},
        split=split,
        source=source,
        arms=arms,
        main=main,
        clean=clean,
        surrogate=surrogate,
        published=published,
        chunk=chunk,
        accumulate=accumulate,
        mesh=mesh,
        facts=trainee.facts(),
    )


def transfer_job(
    experiment: str,
    config: StudyConfig,
    *,
    victims: Mapping[str, Trainee | Classical],
    split: Split,
    source: dict[str, Any],
    arms: Mapping[str, Arm | Stored | Derived],
    main: str,
    clean: str = "the reference",
    surrogate: Trainee | None = None,
    published: list[dict[str, Any]] | None = None,
    chunk: int | None = 1,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """`main_job` for many victims: the same training sets, every victim on each of them.

    Entries of the record are named "<victim>/<training set>" and say which victim they are of; so
    are the folders below `victims/`, each of which is resumed by itself.

    Args:
      experiment: as in `main_job`, like all that is not named here.
      config: as there.
      victims: by name: a network with its recipe, or a classifier that is no network. One network
        may stand there under several names with several recipes (adversarially trained ones).
      split: as there.
      source: as there.
      arms: as there.
      main: as there.
      clean: as there.
      surrogate: as there.
      published: as there.
      chunk: as there, of all networks.
      accumulate: as there.
      mesh: as there.

    Raises: as `main_job`; InputError for no victims.
    """
    if not victims:
        raise InputError("there are no victims; name at least one")
    networks = {name: one.facts() for name, one in victims.items() if isinstance(one, Trainee)}
    others = {name: one.source for name, one in victims.items() if isinstance(one, Classical)}
    return job(
        experiment,
        config,
        victims,
        split=split,
        source=source,
        arms=arms,
        main=main,
        clean=clean,
        surrogate=surrogate,
        published=published,
        chunk=chunk,
        accumulate=accumulate,
        mesh=mesh,
        facts={"trainees": networks, "classifiers": others},
    )
