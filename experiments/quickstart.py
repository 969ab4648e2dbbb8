"""The main job on real images in seconds: clean, noise, EM, TAP, LSP and DeepConfuse on digits.

Claim: at the same L-infinity budget random noise leaves an MLP nearly intact, error-minimizing
noise costs it some and error-maximizing noise most of its accuracy on clean images; a linearly
separable pattern does so without any model, and a trained generator takes nearly all of it.
Expected: clean 98, noise 96, EM 80 to 88, TAP under 35, LSP 30 to 60 (patches of 2 x 2 pixels: a
quarter of the side, as in the paper), DeepConfuse under 15.
Data: scikit-learn's 1,797 scanned digits (1,400 train, 397 test), embedded, no network.
Device: any; about 40 seconds on 2 CPU cores.

    python -m experiments.quickstart
"""

import dataclasses
import math

import jaxpoison as jp
from jaxpoison.report import StudyConfig, Trainee, arm, command_line, control, main_job


@dataclasses.dataclass(frozen=True)
class Config(StudyConfig):
    """Settings of the quickstart."""

    eps: float = 0.3
    """L-infinity radius, pixels in [0, 1]; LSP gets the L2 radius 8 eps of its corners."""
    hidden: tuple[int, ...] = (128, 128)
    """Layers of the MLP that is victim and surrogate; the generator's have twice the width."""
    epochs: int = 20
    """Of every victim and of the surrogate (Adam 0.001, batch 32)."""
    em_rounds: int = 20
    """Rounds of error-minimizing noise."""
    tap_steps: int = 250
    """Sign-gradient steps of error-maximizing noise."""
    trials: int = 100
    """Surrogates that DeepConfuse's generator is trained against, one pass over the data each."""

    def __post_init__(self):
        super().__post_init__()
        steps = {"em_rounds": self.em_rounds, "tap_steps": self.tap_steps}
        steps |= {"trials": self.trials}
        jp.check.at_least(1, epochs=self.epochs, **steps)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, two epochs, few steps."""
        small = {
            "hidden": (),
            "epochs": 2,
            "em_rounds": 2,
            "tap_steps": 20,
            "trials": 1,
            "victims": 2,
        }
        return cls(**small | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    train, test = jp.data.digits("train"), jp.data.digits("test")
    victim = jp.models.mlp(train.image.shape[1:], 10, hidden=config.hidden, batch_norm=False)
    recipe = jp.victims.recipes.small(epochs=config.epochs, learning_rate=1e-3)
    eps, linf = config.eps, jp.perturb.Budget("linf", config.eps)
    l2 = jp.perturb.Budget("l2", eps * math.sqrt(train.image[0].size))
    one_pass = len(train.label) // 32
    arms = (
        control(linf)
        | control(l2)
        | {
            "error-minimizing": arm(
                jp.attacks.error_minimizing,
                victim,
                eps=eps,
                num_classes=10,
                batch_size=128,
                num_steps=config.em_rounds,
                budget=linf,
                expect="10 to 20 below clean: little left to learn",
            ),
            "error-maximizing": arm(
                jp.attacks.error_maximizing,
                victim,
                eps=eps,
                num_classes=10,
                augment=None,
                num_steps=config.tap_steps,
                budget=linf,
                expect="under 35: features of the next class, this label",
            ),
            "lsp": arm(
                jp.attacks.lsp,
                eps=l2.eps,
                num_classes=10,
                patch=2,
                budget=l2,
                expect="30 to 60: patches a linear model can read, made without one",
            ),
            "deepconfuse": arm(
                jp.attacks.deepconfuse,
                jp.models.mlp(train.image.shape[1:], 10, hidden=config.hidden),
                jp.models.mlp_generator(
                    train.image.shape[1:], hidden=[2 * width for width in config.hidden]
                ),
                eps=eps,
                batch_size=32,
                trial_steps=one_pass,
                generator_rate=1e-3,
                select_every=0,
                num_steps=config.trials * one_pass,
                budget=linf,
                expect="under 15: a generator trained against surrogates that start anew",
            ),
        }
    )
    return main_job(
        "quickstart",
        config,
        victim=victim,
        recipe=recipe,
        split=jp.Split(train, test),
        source={"name": "digits", "split": "train"},
        arms=arms,
        main="error-maximizing",
        clean="the reference, about 98",
        surrogate=Trainee(victim, recipe),
        chunk=None,  # a dense net: victims side by side
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
