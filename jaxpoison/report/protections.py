"""The columns of a defense matrix: how a training set is changed, or how it is learned from."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxpoison.report.arms import settings_of
from jaxpoison.types import InputError, Purifier
from jaxpoison.victims import Recipe

__all__ = ["UNDEFENDED", "Protection", "purified_by", "trained_with"]


class Protection(NamedTuple):
    """One defense of a matrix; as it stands, none.

    Attributes:
      settings: of the defense, JSON values; they bind the run folder and the cache.
      purifier: makes another training set of a poisoned one; None leaves it as it is.
      training: a training-time defense, as `victims.victim_training` takes it; None is none.
      recipe: of victims under this defense; None is that of the job.
    """

    settings: dict[str, Any]
    purifier: Purifier | None = None
    training: Any = None
    recipe: Recipe | None = None

    @property
    def kind(self) -> str:
        """`none`, `purifier` or `training`, for tables."""
        if self.purifier is not None:
            return "purifier"
        return "none" if self.training is None and self.recipe is None else "training"


UNDEFENDED = Protection({"defense": "none"})


def purified_by(factory: Callable[..., Purifier], *parts: Any, **options: Any) -> Protection:
    """The defense of training on what `factory(*parts, **options)` makes of the set.

    Args:
      factory: a purifier of `jaxpoison.defenses`.
      *parts: its positional arguments.
      **options: its keyword arguments; all of them are kept as settings, defaults included.

    Raises: InputError for a factory that returns no Purifier, and what it raises.
    """
    purifier = factory(*parts, **options)
    if not isinstance(purifier, Purifier):
        raise InputError(f"{factory.__name__} makes no Purifier; trained_with takes other defenses")
    settings, _ = settings_of(factory, parts, options)
    return Protection({"defense": factory.__name__} | settings, purifier=purifier)


def trained_with(
    factory: Callable[..., Any] | None = None,
    *parts: Any,
    recipe: Recipe | None = None,
    **options: Any,
) -> Protection:
    """The defense of learning in another way: a training-time defense, another recipe, or both.

    Args:
      factory: of a training-time defense of `jaxpoison.defenses`; None for the recipe alone, such
        as adversarial training (`dataclasses.replace(recipe, adversarial="pgd")`).
      *parts: its positional arguments.
      recipe: of victims; None is the job's. What it changes there is read off the record, which has
        it whole.
      **options: the factory's keyword arguments.

    Raises: InputError for neither factory nor recipe, and what the factory raises.
    """
    if factory is None and recipe is None:
        raise InputError("trained_with needs a defense or a recipe; both are None")
    if factory is None:
        return Protection({"defense": "recipe"}, recipe=recipe)
    settings, _ = settings_of(factory, parts, options)
    name = {"defense": factory.__name__}
    return Protection(name | settings, training=factory(*parts, **options), recipe=recipe)
