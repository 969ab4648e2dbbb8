"""The paper's configurations: each can be built, and says what the run scripts say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.attacks import BREWS, gradient_matching
from jaxpoison.attacks.crafting import WITCHES_BREW
from jaxpoison.types import InputError


def linear(name):
    del name
    return jp.models.logistic_regression((8, 8, 3), 3)


@pytest.mark.parametrize("name", BREWS)
def test_every_item_is_an_attack_of_its_own_steps_at_its_networks(name):
    brew, asked = BREWS[name], []
    attack = brew.build(lambda n: asked.append(n) or linear(n), gradient_matching)
    assert attack.num_steps == brew.steps and tuple(asked) == brew.networks
    assert all(hasattr(jp.models, network) for network in asked)
    assert brew.restarts in (1, 8) and 255 * brew.eps in (8, 16, 32)


def test_what_the_items_differ_in():
    main, het = BREWS["main"], BREWS["benchmark-het"]
    assert (main.eps, main.restarts, main.steps, main.tau) == (16 / 255, 8, 250, 0.1)
    assert (het.ensemble, het.batch_size, het.tau) == (6, 128, 0.5)
    loop = het.crafting()
    assert (loop.ensemble, loop.batch_size, loop.tau) == (6, 128, 0.5)
    assert het.networks == ("resnet18", "vgg11", "mobilenet_v2")
    assert BREWS["benchmark-ens4"].ensemble == 4
    assert BREWS["table2-convnet"].eps == 32 / 255
    plain = [name for name, brew in BREWS.items() if not brew.augment]
    assert plain == ["table1-a", "table1-b", "table1-c"]
    assert [n for n in plain if not BREWS[n].augment_victims] == ["table1-a"]
    assert {f"ensemble{k}-restarts{r}" for k in (1, 2, 4, 8) for r in (1, 8)} <= set(BREWS)
    assert BREWS["supplementary-margin"].options == {"target_loss": "margin"}
    assert BREWS["supplementary-squared"].options == {"loss": "SE"}
    assert BREWS["supplementary-steps50"].steps == 50


def test_the_first_step_is_six_grey_levels_and_padding_is_the_mean_color():
    crafting = BREWS["main"].crafting()
    first = 255 * crafting.tau * np.asarray(crafting.std) * crafting.batch_size / 512
    np.testing.assert_allclose(first, [6.30, 6.21, 6.67], atol=0.005)
    default = 255 * WITCHES_BREW.tau * np.asarray(WITCHES_BREW.std)  # where nothing is said
    np.testing.assert_allclose(default, np.mean(first), rtol=0.05)
    mean = jp.victims.recipes.NORMALIZATION["cifar10"][0]
    image = jnp.broadcast_to(jnp.asarray(mean), (4, 8, 8, 3))
    np.testing.assert_allclose(crafting.augment(jax.random.key(0), image), image, atol=1e-6)
    assert BREWS["table1-b"].crafting().augment is None
    assert BREWS["main"].crafting("mnist", steps=3).std == (0.3081078,)


def test_an_unknown_data_set_is_named():
    with pytest.raises(InputError, match="data = 'svhn'; allowed are cifar10"):
        BREWS["main"].crafting("svhn")
