"""What a job of added points looks at before its run folder is made."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxpoison import check
from jaxpoison.report.added_arms import AddedArm
from jaxpoison.report.added_config import AddedConfig, Follower, Player
from jaxpoison.report.preparation import Trainee, abstract, check_split
from jaxpoison.types import Dataset, Filter, InputError, Key, Scenario, Split, Variables, Victim
from jaxpoison.victims import Extractor, Recipe, ToConvergence, join_head, on_features
from jaxpoison.victims.checks import num_logits

__all__ = ["base_rows", "check_added_arms", "check_players", "known", "rehearse_added"]


def check_players(players: Mapping[str, Player], split: Split) -> Split:
    """Players that can train on these data; the checked split.

    Raises: InputError for names that are no folders, no followers, a reference that is not among
      them, pixels' augmentation of features, and as `check_split`.
    """
    if not players:
        raise InputError("there are no players; name at least one")
    for name, one in players.items():
        _check_player(name, one)
        if name or len(players) > 1:
            _check_name("player", name)
        for follower, how in one.followers.items():
            _check_name("follower", follower)
            _check_follower(f"follower {follower!r}", how, one, len(split.train.label))
        check.one_of(tuple(one.followers), reference=one.reference)
        for defense, filter in one.filters.items():
            _check_name("filter", defense)
            check.kind(Filter, **{f"filter {defense!r}": filter})
    return check_split(split, [Trainee(on_images(one), _ANY) for one in players.values()])


def on_images(player: Player) -> Victim:
    """The network from images to logits that a player ends with."""
    if player.extractor is None:
        return player.victim
    return on_features(player.extractor.victim, player.victim)


def check_added_arms(
    arms: Mapping[str, AddedArm], players: Mapping[str, Player], config: AddedConfig, num: int
) -> dict[str, AddedArm]:
    """Arms of players that are there, at shares of N = num rows that are at least one; as given.

    An arm without a player belongs to the only one.

    Raises: InputError where they are not.
    """
    if not arms:
        raise InputError("there are no arms; name at least one")
    found, only = {}, next(iter(players)) if len(players) == 1 else ""
    for name, one in arms.items():
        _check_name("arm", name)
        if name == "clean":
            raise InputError("no arm can be called 'clean', the name of the clean training set")
        if not isinstance(one, AddedArm):
            raise InputError(f"arm {name!r} is a {type(one).__name__}; see added_arm")
        player = one.player or only
        check.one_of(players, **{f"arm {name!r}: player": player})
        if one.space == "features" and players[player].extractor is None:
            raise InputError(f"arm {name!r} is in feature space; player {player!r} has no "
                             "extractor")  # fmt: skip
        check.at_least(1, **{f"num_steps of {name}": one.num_steps})
        for share in one.shares or config.shares:
            if round(share * num) < 1:
                raise InputError(f"shares = {share:g} of {num} rows is less than one point")
        found[name] = one._replace(player=player, shares=one.shares or config.shares)
    return found


def base_rows(key: Key, num: int, share: float) -> Int[Array, " p"]:
    """P = round(share * N) of N rows, ascending; those of a smaller share are among them."""
    order = np.asarray(jax.random.permutation(key, num))
    return jnp.asarray(np.sort(order[: round(share * num)]), jnp.int32)


def known(one: AddedArm, player: Player, network: Variables):
    """`scenario.aux` of an arm: the clean network as its victim takes it, and what else it has."""
    if one.space == "input" and player.extractor is not None:
        network = join_head(player.extractor.variables, network)
    return network if one.aux is None else (network, one.aux)


def rehearse_added(
    arms: Mapping[str, AddedArm], players: Mapping[str, Player], train: Dataset
) -> None:
    """Every attack's moves without computing, at its smallest share.

    Raises: InputError where an attack cannot start, or gives another set than N + P rows.
    """
    for name, one in arms.items():
        player = players[one.player]
        _check_labels(name, one, player, train)
        clean = train
        if one.space == "features" and player.extractor is not None:
            image = jax.ShapeDtypeStruct((1, *train.image.shape[1:]), jnp.float32)
            network = player.extractor
            width = jax.eval_shape(network.victim.features, network.variables, image).shape[1]
            shape = (len(train.label), 1, 1, width)
            features: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
            clean = Dataset(features, train.label)
        index = jnp.arange(round(min(one.shares or ()) * len(train.label)), dtype=jnp.int32)
        aux = known(one, player, abstract(player.victim))
        scenario = Scenario(clean, clean, index, aux)

        if one.attack.check is not None:
            one.attack.check(scenario)

        def moves(key, scenario, attack=one.attack):
            state = attack.init(key, scenario)
            state, _ = attack.step(key, state, scenario)
            return attack.poison(state, scenario)

        poison = jax.eval_shape(moves, jax.random.key(0), scenario)
        wanted = (len(train.label) + len(index), *clean.image.shape[1:])
        if poison.image.shape != wanted:
            raise InputError(
                f"arm {name!r} gives a training set of {poison.image.shape}; {len(index)} added "
                f"points ask for {wanted}"
            )


_ANY = Recipe(epochs=1, batch_size=1, learning_rate=1.0)
"""Of a Trainee whose network alone is looked at."""


def _check_player(name: str, one: Any) -> None:
    """Its fields are of their types, and it has a follower."""
    which = f"player {name!r}"
    check.kind(Player, **{which: one})
    check.kind(Victim, **{f"victim of {which}": one.victim})
    check.kind(Mapping, hint=", by name", **{f"followers of {which}": one.followers})
    check.kind(Mapping, hint=", by name", **{f"filters of {which}": one.filters})
    if not one.followers:
        raise InputError(f"{which} has no followers; name at least one")
    if one.extractor is not None:
        check.kind(Extractor, **{f"extractor of {which}": one.extractor})
        check.kind(Victim, **{f"extractor.victim of {which}": one.extractor.victim})
        check.kind(Variables, **{f"extractor.variables of {which}": one.extractor.variables})
    if one.trusted != ():
        check.kind(Dataset, **{f"trusted of {which}": one.trusted})


def _check_follower(name: str, how: Follower, player: Player, num: int) -> None:
    if isinstance(how, ToConvergence):
        return
    if not isinstance(how, Recipe):
        raise InputError(f"{name} is a {type(how).__name__}; allowed are Recipe and ToConvergence")
    if how.batch_size > num:
        raise InputError(f"{name}: batch_size = {how.batch_size}; there are {num} training images")
    if player.extractor is None:
        return
    for setting in ("augmentation", "adversarial"):
        if (value := getattr(how, setting)) != "none":
            raise InputError(f"{name}: {setting} = {value} is for images; it learns features")


def _check_labels(name: str, one: AddedArm, player: Player, train: Dataset) -> None:
    asked = one.settings.get("num_classes")
    most = num_logits(on_images(player), train.image.shape[1:])
    if isinstance(asked, int) and asked > most:
        raise InputError(f"arm {name!r}: num_classes = {asked}; its player has {most} logits")


def _check_name(what: str, name: str) -> None:
    if not name or pathlib.Path(name).name != name or name.startswith("."):
        raise InputError(f"{what} = {name!r}; a plain folder name is needed, not hidden")
