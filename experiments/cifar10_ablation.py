"""What makes gradient matching work on CIFAR-10: ensembles, restarts, augmented poisons.

Claim (Geiping et al. 2021, table 1 and the figure of its section 5.1; their values were not at
hand): poisons crafted without augmentation fail on victims that augment; an ensemble, or at far
less cost differentiable augmentation while crafting, restores them; more restarts and surrogates
help. Rows "K4-R8": 4 surrogates, 8 restarts, augmented poisons; K = 1, 2, 4, ... up to --ensemble
and R = 1 and --restarts; "K1-R8-plain", "K8-R8-plain": poisons as they are. Victims augment, the
surrogates of all rows are the same. --plain is the first row of that table, a run of its own:
neither poisons nor any training is augmented.
Expected: K8-R8-plain above K1-R8-plain, K1-R8 near K8-R8-plain or above, R8 no worse than R1; the
one row of --plain near K1-R8.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz; on the
order of rows see experiments.cifar10_gradient_matching.
Device: one accelerator, estimated 13 hours (11 training sets x 10 keys x 8 victims of 40 seconds,
and 3 hours of crafting); --num-setups 3 --victims 2 --ensemble 4: estimated 1.5 hours. --scale
small shows the rows on a CPU, estimated 20 minutes, and reproduces nothing.

    python -m experiments.cifar10_ablation --data-dir DATA_DIR --dtype bfloat16
    python -m experiments.cifar10_ablation --data-dir DATA_DIR --dtype bfloat16 --plain --name plain
"""

import dataclasses

import jaxpoison as jp
from jaxpoison.report import TargetedConfig, Trainee, command_line, control, targeted_job
from jaxpoison.report.arms import Arm


@dataclasses.dataclass(frozen=True)
class Config(TargetedConfig):
    """Settings of the ablation of gradient matching on CIFAR-10."""

    SMALL = TargetedConfig.SMALL | {"restarts": 2, "keys": tuple(range(6)), "victims": 3}

    ensemble: int = 8
    """Surrogates of the largest ensemble; its first 1, 2, 4, ... are the smaller ones."""
    plain: bool = False
    """Whether neither poisons nor any network's training is augmented; then with one surrogate."""

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: linear networks, one setup, two steps, the row of --plain."""
        return super().smoke(**{"plain": True, "keys": (0,)} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load_classes()
    if config.plain:
        config = dataclasses.replace(config, ensemble=1)
    members = [_trained(one, config.plain) for one in config.members(split)]
    victims = {name: _trained(one, config.plain) for name, one in config.judges(split).items()}
    rows = _rows(config, members)
    return targeted_job(
        "cifar10_ablation",
        config,
        setups=config.from_keys(split),
        victims=victims,
        split=split,
        source=source,
        arms=control(jp.perturb.Budget("linf", config.eps)) | rows,
        main=next(name for name in rows if name.startswith("K1-")),
        surrogates=members,
        clean="the reference, success about 0",
        **config.memory(),
    )


def _trained(one: Trainee, plain: bool) -> Trainee:
    """The network with or without augmentation in its training."""
    how = "none" if plain else "shift_flip"
    return Trainee(one.victim, dataclasses.replace(one.recipe, augmentation=how))


def _rows(config: Config, members: list[Trainee]) -> dict[str, Arm]:
    """The rows by name."""
    sizes, powers = len(members), range(config.ensemble.bit_length())
    ensembles = sorted({*(2**i for i in powers if 2**i <= sizes), sizes})
    rows = [(k, r, True) for k in ensembles for r in sorted({config.restarts, 1}, reverse=True)]
    rows = [] if config.plain else rows
    rows += [(k, config.restarts, False) for k in sorted({1, sizes})]
    return {
        f"K{k}-R{r}{'' if augmented else '-plain'}": config.matching(
            members,
            "table 1 and figure of section 5.1, values not at hand",
            ensemble=k,
            restarts=r,
            crafting_augment=augmented,
        )
        for k, r, augmented in rows
    }


if __name__ == "__main__":
    command_line(main, Config, __doc__)
