import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.report import TargetedConfig
from jaxpoison.report.targeted_config import of_first
from jaxpoison.types import Attack, Dataset, InputError, Scenario, Split, Variables


def test_a_smaller_ensemble_sees_the_first_of_the_shared_surrogates():
    def seen(name):
        return lambda *args: (name, args[-1].aux.params)

    def factory(*, score=True):
        scoring = seen("score") if score else None
        return Attack(seen("init"), seen("step"), seen("poison"), num_steps=3, score=scoring)

    empty = Dataset(jnp.zeros((0, 1, 1, 1)), jnp.zeros(0, jnp.int32))
    aux = Variables(jnp.arange(4.0), {})
    scenario = Scenario(empty, empty, jnp.zeros(0, jnp.int32), aux)
    for num, wanted in ((1, 0.0), (2, [0.0, 1.0])):
        attack = of_first(factory, num)()
        calls = attack.init(0, scenario), attack.step(0, 0, scenario), attack.poison(0, scenario)
        for name, found in (*calls, attack.score(0, scenario)):
            np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert attack.num_steps == 3
    assert of_first(factory, 2)(score=False).score is None
    assert of_first(factory, 2).__name__ == "factory"


def test_members_take_their_networks_in_turn_and_by_their_own_recipe():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    split = Split(*(Dataset(image, np.zeros(1, np.int32)),) * 2)
    config = TargetedConfig(
        surrogate_networks=("mlp", "convnet"), ensemble=3, epochs=7, surrogate_epochs=9
    )
    first, second, third = config.members(split)
    assert first == third != second
    assert (first.recipe.epochs, first.recipe.learning_rate) == (9, 0.1)
    assert second.recipe.learning_rate == pytest.approx(0.01)
    one = config.judges(split)[""]
    assert one.recipe.epochs == 7 and one.recipe.augmentation == "shift_flip"
    assert set(TargetedConfig(networks=("mlp", "convnet")).judges(split)) == {"mlp", "convnet"}
    few = TargetedConfig(surrogate_networks=("mlp", "convnet"))
    with pytest.raises(InputError, match="ensemble = 1 surrogates of 2 networks; each network"):
        few.members(split)


def test_the_outer_loop_is_that_of_the_settings():
    config = TargetedConfig(steps=10, tau=0.5, poison_batch=128, ensemble=2)
    crafting = config.crafting()
    found = crafting.steps, crafting.tau, crafting.batch_size, crafting.ensemble
    assert found == (10, 0.5, 128, 2) and crafting.std == (0.2470322, 0.2434851, 0.2615879)
    assert crafting.augment is not None
    assert TargetedConfig.small().crafting().augment is None
    assert config.memory()["at_once"] == 1
    assert TargetedConfig(at_once=0).memory()["at_once"] is None  # all devices
    with pytest.raises(InputError, match="surrogate_recipe = 'best'; allowed are"):
        TargetedConfig(surrogate_recipe="best")
    for name in ("networks", "surrogate_networks", "keys"):
        with pytest.raises(InputError, match=f"there are no {name}; name at least one"):
            TargetedConfig(**{name: ()})
    with pytest.raises(InputError, match="networks = mlp, mlp; name each once"):
        TargetedConfig(networks=("mlp", "mlp"))
