"""The last layer: by name in networks of known names, whatever the names elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxpoison as jp
from jaxpoison.types import InputError, Variables
from jaxpoison.victims import head_mask, new_head
from tests import oracles


def chosen(victim, shape):
    leaves = jax.tree_util.tree_leaves_with_path(head_mask(victim, shape))
    return {jax.tree_util.keystr(path) for path, head in leaves if head}


CNNS = ("small_cnn", "convnet", "cnn5", "resnet18", "vgg11", "mobilenet_v2")
DEEP = ("resnet34", "resnet50", "resnet152", "vgg19", "densenet121")
FORMS = ("wide_resnet28_10", "vit_small")


@pytest.mark.parametrize(
    "name", [*CNNS, *FORMS, *(pytest.param(n, marks=pytest.mark.slow) for n in DEEP)]
)
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


class Wrapped(nn.Module):
    """A network whose layers stand in programs of their own: jitted, remat, branches."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        del train
        x = nn.remat(nn.Dense)(4, name="first")(x.reshape(x.shape[0], -1))
        x = nn.jit(nn.Dense)(4, name="second")(nn.softplus(x))
        x = jax.lax.cond(jnp.sum(x) > 0, jnp.tanh, jnp.sin, x)
        self.sow("intermediates", "features", x)
        return nn.jit(nn.Dense)(3, name="last")(nn.gelu(x))


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint])
def test_layers_in_programs_of_their_own(around):
    victim = jp.models.adapt(Wrapped(), (2, 2, 1))
    whole = victim._replace(features=around(victim.features))
    assert chosen(whole, (2, 2, 1)) == {"['last']['bias']", "['last']['kernel']"}


def test_a_new_head_takes_other_classes_and_leaves_the_extractor():
    old = jp.models.mlp((4, 4, 1), 5, hidden=(6,)).init(jax.random.key(1))
    old = Variables(old.params, jax.tree.map(lambda x: x + 1, old.stats))
    victim, key = jp.models.mlp((4, 4, 1), 3, hidden=(6,)), jax.random.key(0)
    new, fresh = new_head(key, victim, old, image_shape=(4, 4, 1)), victim.init(key)
    for layer in ("Dense_1", "BatchNorm_1"):
        jax.tree.map(np.testing.assert_array_equal, new.params[layer], fresh.params[layer])
    for layer in ("Dense_0", "BatchNorm_0"):
        jax.tree.map(np.testing.assert_array_equal, new.params[layer], old.params[layer])
    assert new.params["Dense_1"]["kernel"].shape == (6, 3)
    jax.tree.map(np.testing.assert_array_equal, new.stats["BatchNorm_0"], old.stats["BatchNorm_0"])
    np.testing.assert_array_equal(new.stats["BatchNorm_1"]["mean"], np.zeros(3))  # starts anew


def test_a_new_head_refuses_another_network():
    victim, key = jp.models.mlp((4, 4, 1), 3, hidden=(5,)), jax.random.key(0)
    for hidden, why in [((6,), r"an array is \(6,\), not \(5,\)"), ((5, 5), "names differ")]:
        other = jp.models.mlp((4, 4, 1), 3, hidden=hidden).init(key)
        with pytest.raises(InputError, match=why):
            new_head(key, victim, other, image_shape=(4, 4, 1))
