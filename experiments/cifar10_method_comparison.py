"""Targeted attacks of the literature on the ten setups of Witches' Brew, all with the same budget.

Claim (Geiping et al. 2021, table 2; its values were not at hand): with the same poisons, radius,
surrogate and victims trained from scratch, gradient matching succeeds more often than MetaPoison in
the form that its authors compared with, and both more often than feature collision and a watermark;
the polytope attacks were made for transfer learning. As there, the attacks share the outer loop
(sign-Adam, restarts, augmented poisons) and differ in their objective: metapoison-at-surrogate (two
steps unrolled, gradient at the clean images), mean-feature-collision (which that table calls Poison
Frogs; batches of 128), bullseye-polytope, convex-polytope. feature-collision is each poison by
itself, as its own paper has it, within the same radius and as many steps; watermark optimizes
nothing. --methods may also name metapoison, as its own authors have it (24 networks in training, 60
epochs of each): within the radius, without its color map, and far from cheap.
Table 2 has ResNet-18 at eps 16/255, the default, and ConvNet64 at 32/255: --networks convnet
--surrogate-networks convnet --eps 0.1254902 --name convnet.
Expected: the order above; no source at hand has its values.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz; on the
order of rows see experiments.cifar10_gradient_matching.
Device: one accelerator, estimated 8 hours, nearly all for victims, and 3 for every key with
metapoison on ResNet-18; --num-setups 3 --victims 2 --methods gradient-matching
metapoison-at-surrogate mean-feature-collision watermark: estimated 40 minutes. --scale small shows
them on a CPU, estimated 25 minutes, and reproduces nothing.

    python -m experiments.cifar10_method_comparison --data-dir DATA_DIR --dtype bfloat16
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jaxpoison as jp
from jaxpoison.report import (
    TargetedConfig,
    Trainee,
    arm,
    command_line,
    control,
    published,
    targeted_job,
)
from jaxpoison.report.arms import Arm
from jaxpoison.report.targeted_config import networks, of_first

Method = Literal[
    "gradient-matching",
    "metapoison-at-surrogate",
    "metapoison",
    "mean-feature-collision",
    "feature-collision",
    "bullseye-polytope",
    "convex-polytope",
    "watermark",
]
LOOP: dict[str, tuple[Callable, dict, dict]] = {
    "gradient-matching": (jp.attacks.gradient_matching, {}, {}),
    "metapoison-at-surrogate": (
        jp.attacks.metapoison_at_surrogate,
        {"unroll_steps": 2, "clean_gradient": True},
        {},
    ),
    "mean-feature-collision": (jp.attacks.mean_feature_collision, {}, {"poison_batch": 128}),
    "bullseye-polytope": (jp.attacks.bullseye_polytope, {}, {}),
    "convex-polytope": (jp.attacks.convex_polytope, {}, {}),
}
"""Attacks of the shared outer loop: keywords of theirs, and settings that they have otherwise."""
EXPECT = {
    "gradient-matching": "the highest success",
    "metapoison-at-surrogate": "below gradient matching",
    "metapoison": "no value at hand",
    "watermark": "near noise",
}
"""What to expect; of the others: "little, from scratch"."""


@dataclasses.dataclass(frozen=True)
class Config(TargetedConfig):
    """Settings of the comparison of targeted attacks on CIFAR-10."""

    methods: tuple[Method, ...] = tuple(name for name in get_args(Method) if name != "metapoison")
    """Attacks that are run; the first is tested against the others."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.methods:
            jp.check.one_of(get_args(Method), methods=name)
        if not self.methods:
            raise jp.InputError("there are no methods; name at least one")

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: linear networks, one setup, two steps, two attacks."""
        some = ("mean-feature-collision", "watermark")
        return super().smoke(**{"methods": some, "keys": (0,)} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load_classes()
    members = config.members(split)
    arms = control(jp.perturb.Budget("linf", config.eps))
    arms |= {name: _arm(config, name, members) for name in config.methods}
    return targeted_job(
        "cifar10_method_comparison",
        config,
        setups=config.from_keys(split),
        victims=config.judges(split),
        split=split,
        source=source,
        arms=arms,
        main=config.methods[0],
        surrogates=members,
        clean="the reference, success about 0",
        **config.memory(),
        published=[
            published(
                "success, MetaPoison, 1 % poisons, its own setting",
                0.90,
                "Huang et al. 2020, abstract",
            )
        ],
    )


def _arm(config: Config, name: str, members: list[Trainee]) -> Arm:
    """That attack within the radius of all."""
    expect = EXPECT.get(name, "little, from scratch")
    if name in LOOP:
        attack, options, changes = LOOP[name]
        return config.crafted(attack, members, expect, options=options, **changes)
    own = {"eps": config.eps, "budget": jp.perturb.Budget("linf", config.eps), "expect": expect}
    if name == "watermark":
        return arm(jp.attacks.watermark, **own)
    if name == "metapoison":
        crafting = jp.attacks.MetaCrafting()
        crafting = crafting if config.scale == "paper" else crafting.small()
        return arm(jp.attacks.metapoison, members[0].victim, crafting=crafting, **own)
    attack = jp.attacks.feature_collision
    attack = of_first(attack, 1) if len(members) > 1 else attack
    return arm(attack, networks(members[:1]), steps=config.steps, num_steps=config.steps, **own)


if __name__ == "__main__":
    command_line(main, Config, __doc__)
