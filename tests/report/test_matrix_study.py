"""The names that `--attacks` and `--defenses` offer are the rows and columns that there are."""

import types
from typing import get_args

from jaxpoison import victims
from jaxpoison.report import AttackName, DefenseName, usual_attackers, usual_defenses


def test_the_help_names_what_is_made():
    known = {}

    def chosen(what, named):
        known[what] = tuple(named)
        return {}

    config = types.SimpleNamespace(eps=0.1, own_recipes=False, chosen=chosen)
    recipe = victims.recipes.small()
    assert usual_attackers(config, None, 10, None, recipe) == {}
    assert usual_defenses(config, (4, 4, 1), 10, recipe) == {}
    assert known == {"attacks": get_args(AttackName), "defenses": get_args(DefenseName)}


def test_epochs_that_are_asked_for_hold_for_the_recipes_of_the_sources():
    def chosen(what, named):
        return {name: named[name] for name in ("adversarial", "ueraser")}

    plain = victims.recipes.small()
    for own, epochs, expected in ((True, None, (100, 200)), (True, 7, (7, 7))):
        config = types.SimpleNamespace(
            eps=0.1, own_recipes=own, epochs=epochs, pgd_steps=2, ueraser_epochs=2, chosen=chosen
        )
        made = usual_defenses(config, (4, 4, 1), 10, plain)
        found = [made[name].recipe.epochs for name in ("adversarial", "ueraser")]
        assert tuple(found) == expected
