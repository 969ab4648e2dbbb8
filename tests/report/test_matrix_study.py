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
