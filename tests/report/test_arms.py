"""The arm of an attack that is crafted: its steps and settings come from its `Crafting`."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.attacks import Crafting
from jaxpoison.perturb import Budget
from jaxpoison.report import arm, sweep
from jaxpoison.report.arms import ball, settings_of
from jaxpoison.types import InputError

VICTIM = jp.models.mlp((4, 4, 1), 2, hidden=(2,))
HOW = {"eps": 0.1, "budget": Budget("linf", 0.1), "expect": "reads the target as wanted"}


def matching(**options):
    return arm(jp.attacks.gradient_matching, VICTIM, **HOW, **options)


def test_an_arm_takes_its_steps_from_the_crafting():
    assert matching(crafting=Crafting(steps=7)).num_steps == 7
    assert matching(crafting=Crafting(steps=7), restarts=2).attack.num_steps == 7
    assert matching().num_steps == 250
    assert matching(crafting=Crafting(steps=7), num_steps=7).num_steps == 7
    with pytest.raises(InputError) as error:
        matching(crafting=Crafting(steps=7), num_steps=8)
    line = "num_steps = 8; the schedule of gradient_matching is laid out over 7 steps"
    assert str(error.value) == line
    assert arm(jp.attacks.random_noise, **HOW).num_steps == 1


def test_the_settings_of_an_arm_have_every_field_of_its_crafting():
    crafting = Crafting(steps=7, std=(0.2,), augment=jp.data.augment.shift_flip())
    settings = matching(crafting=crafting).settings
    written = json.loads(json.dumps(settings))
    assert written["attack"] == "gradient_matching" and written["eps"] == 0.1
    fields = dataclasses.asdict(crafting) | {"std": [0.2], "augment": crafting.augment.__qualname__}
    assert written["crafting"] == fields
    assert matching().settings["crafting"]["tau"] == 0.1


def test_the_settings_of_an_arm_know_an_array_by_its_content():
    table = np.zeros((2, 3, 3, 3), np.float32)
    shown = hashlib.sha256(b"<f4[2, 3, 3, 3]" + table.tobytes()).hexdigest()[:16]
    made = [
        arm(jp.attacks.autoregressive, num_classes=2, coefficients=given, eps=jnp.float32(0.5),
            budget=Budget("l2", 0.5), expect="").settings
        for given in (table, jnp.asarray(table), table + np.eye(3, k=1, dtype=np.float32))
    ]  # fmt: skip
    assert json.loads(json.dumps(made[0])) == made[0] == made[1] != made[2]
    assert made[0]["coefficients"] == f"float32[2,3,3,3] sha256:{shown}" and made[0]["eps"] == 0.5
    assert settings_of(lambda wanted: wanted, [np.array([1, 2, 0])], {})[0] == {"wanted": [1, 2, 0]}
    assert "key" not in settings_of(lambda key: key, [jax.random.key(0)], {})[0]


def test_restarts_are_shared_out_over_the_devices_with_the_same_bits():
    one = arm(jp.attacks.random_noise, eps=0.1, budget=Budget("linf", 0.1), expect="", restarts=4)
    data = jp.data.synthetic.blobs(jax.random.key(0), 6, num_classes=2, image_shape=(3, 3, 1))
    given = jp.Scenario(data, data, jnp.arange(6))
    state = jax.jit(one.spread().init)(jax.random.key(1), given)
    assert len(state.sharding.device_set) == 4
    np.testing.assert_array_equal(state, jax.jit(one.attack.init)(jax.random.key(1), given))
    assert one.spread() is one.spread() and one._replace(has_mesh=True).spread() is one.attack


def test_an_arm_without_a_budget():
    """Its images are bounded by the box alone; a sweep of it has no noise to stand beside."""
    one = arm(jp.attacks.convolution, num_classes=3, budget=None, rounding="cast", expect="")
    assert ball(one.budget) == (None, None) and ball(Budget("l2", 1.5)) == ("l2", 1.5)
    assert one.settings["rounding"] == "cast"
    with pytest.raises(InputError) as error:
        sweep("cuda", lambda value: one, "blur", (0.3,), controls=True)
    message = "cuda has no budget, so no noise of it; controls must be False"
    assert str(error.value) == message
    network = jp.models.create_generator("mlp_generator", (4, 4, 1), hidden=(2,))
    options = {"trial_steps": 2, "batch_size": 2, "expect": ""}
    with pytest.raises(InputError, match="^the budget is None; a generator's is linf$"):
        arm(jp.attacks.deepconfuse, VICTIM, network, eps=0.1, budget=None, num_steps=3, **options)
