"""Networks trained on other data beforehand, and kept, for victims and surrogates to start from."""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from jaxpoison import check, hosts, loops, models, over
from jaxpoison.data import saved
from jaxpoison.data.manifest import key_record
from jaxpoison.data.verification import fingerprint
from jaxpoison.types import InputError, Key, Split, Training, Victim
from jaxpoison.victims.contrastive import MoCoV3, SimCLR, contrastive_training, pretrained
from jaxpoison.victims.recipe import Recipe
from jaxpoison.victims.store import Card, Trained, load, save
from jaxpoison.victims.train import victim_training

__all__ = ["pretrain"]


def pretrain(
    path: str | os.PathLike[str],
    key: Key,
    split: Split,
    *,
    network: str | Victim,
    recipe: Recipe,
    num_classes: int,
    contrastive: SimCLR | MoCoV3 | None = None,
    options: Mapping[str, Any] | None = None,
    num: int | None = None,
    chunk: int | None = 1,
    accumulate: int = 1,
    console: Console | None = None,
) -> Trained:
    """Pretraining into a folder of `save`, with labels or without; what is there is loaded.

    Supervised (`victim_training`), or with a method self-supervised (`contrastive_training`): then
    labels train the last layer alone, of which the accuracy on the card is. A killed pretraining
    goes on from its last checkpoint, kept beside the folder as `<path>.training` until it is done.

    Args:
      path: the folder.
      key: of the training.
      split: the other data set; its test set is for the accuracy on the card alone.
      network: its name in `models.create`, or a Victim.
      recipe: how it is trained.
      num_classes: L of these data.
      contrastive: SimCLR or MoCoV3; None is supervised. `victims.extractor_recipes` has
        it with its recipe and network.
      options: keyword arguments of `models.create`.
      num: R networks with a leading axis, each for a victim of its own; None for one without.
      chunk: as in `over_restarts`.
      accumulate: micro-batches per update, of supervised pretraining: negatives are of one batch.
      console: of the progress bar; None is standard error.

    Returns: as `load`; `transfer` takes it, or the path.
    Raises: InputError as `victim_training`, `contrastive_training` and `save`, and for a folder of
      another network, recipe, method, training set or key.
    """
    check.kind(Split, split=split)
    check.kind(Recipe, recipe=recipe)
    if contrastive is not None:
        check.kind((SimCLR, MoCoV3), contrastive=contrastive)
    made_by = key_record(key)
    folder, options = pathlib.Path(path), dict(options or {})
    own = None if isinstance(network, str) else network
    if hosts.first(folder.exists):
        found = load(folder, victim=own)
        asked = {"num_classes": num_classes, "num": num, "recipe": recipe}
        asked |= {"contrastive": contrastive, "train": fingerprint(split.train)}
        asked |= {"key": made_by}
        _check_card(folder, found.card, network, options, asked)
        return found
    image_shape = split.train.image.shape[1:]
    victim = own or models.create(str(network), image_shape, num_classes, **options)
    process = _process(victim, recipe, contrastive, split, accumulate)
    if num is not None:
        process = over.spread(process, num, chunk=chunk)
    unfinished = folder.with_name(f"{folder.name}.training")
    state, info, _ = loops.run_chunks(
        process,
        key,
        split,
        num_steps=recipe.epochs,
        directory=unfinished,
        description=f"pretrain {folder.name}",
        console=console,
    )
    save(
        folder,
        hosts.gather(state if contrastive is None else pretrained(state)),
        network=network,
        image_shape=image_shape,
        num_classes=num_classes,
        options=options,
        recipe=recipe,
        train=split.train,
        accuracy=info.test_accuracy[-1].reshape(-1).tolist(),
        contrastive=contrastive,
        key=key,
    )
    hosts.first(lambda: shutil.rmtree(unfinished, ignore_errors=True))
    return load(folder, victim=own)


def _process(
    victim: Victim,
    recipe: Recipe,
    contrastive: SimCLR | MoCoV3 | None,
    split: Split,
    accumulate: int,
) -> Training:
    num_train = len(split.train.label)
    if contrastive is None:
        return victim_training(victim, recipe, num_train, accumulate=accumulate)
    if accumulate != 1:
        raise InputError(f"accumulate = {accumulate}; it must be 1 where a method is contrastive")
    image_shape = split.train.image.shape[1:]
    return contrastive_training(victim, contrastive, recipe, num_train, image_shape=image_shape)


def _check_card(
    folder: pathlib.Path,
    card: Card,
    network: str | Victim,
    options: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    name = network if isinstance(network, str) else None
    kept = saved.typed_options(saved.plain_options(options))
    for field, value in ({"network": name, "options": kept} | asked).items():
        found = getattr(card, field)
        if found != value:
            raise InputError(
                f"{folder} holds a network of another {field}: {found}, not {value}; use another "
                "folder"
            )
