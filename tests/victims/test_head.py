"""The last layer: by name in networks of known names, whatever the names elsewhere."""

import jax
import pytest

import jaxpoison as jp
from jaxpoison.types import InputError, Variables
from jaxpoison.victims import head_mask
from tests import oracles


def chosen(victim, shape):
    leaves = jax.tree_util.tree_leaves_with_path(head_mask(victim, shape))
    return {jax.tree_util.keystr(path) for path, head in leaves if head}


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "vgg11", "mobilenet_v2", "densenet121"])
def test_it_is_the_weight_and_bias_of_the_layer_that_gives_the_logits(name):
    victim = jp.models.create(name, (32, 32, 3), 7)
    paths = chosen(victim, (32, 32, 3))
    params = jax.eval_shape(victim.init, jax.random.key(0)).params
    leaves = jax.tree_util.tree_leaves_with_path(params)
    last = {jax.tree_util.keystr(p): x.shape for p, x in leaves if jax.tree_util.keystr(p) in paths}
    assert sorted(len(shape) for shape in last.values()) == [1, 2]
    assert all(shape[-1] == 7 for shape in last.values())


def test_logits_norm_belongs_to_it_and_logistic_regression_is_all_head():
    victim = jp.models.mlp((2, 2, 1), 3, hidden=(4,))
    assert len(chosen(victim, (2, 2, 1))) == 4
    assert len(chosen(jp.models.logistic_regression((2, 2, 1), 3), (2, 2, 1))) == 2


def test_names_do_not_matter_nor_does_jit():
    plain = oracles.smooth_victim()
    assert chosen(plain, (3, 3, 1)) == {"['v']"}

    @jax.jit
    def both(variables, image):
        hidden = plain.features(variables, image)
        return hidden @ variables.params["v"], hidden

    jitted = plain._replace(features=lambda variables, image: both(variables, image)[1])
    assert chosen(jitted, (3, 3, 1)) == {"['v']"}


def test_a_network_without_a_last_layer_is_refused():
    victim = oracles.smooth_victim()
    whole = victim._replace(features=lambda v, x: victim.apply(Variables(*v), x, train=False)[0])
    with pytest.raises(InputError, match="no last layer"):
        head_mask(whole, (3, 3, 1))
