"""CIFAR-10: added points against a head on an extractor pretrained on CIFAR-10 itself.

Claim (Lu et al. 2024, fine-tuning on the same data set): a victim that trains a linear head on
frozen, trusted features loses accuracy to a few added images whose features cancel its gradient at
a corrupted head. Canceling in feature space reaches the target head; mapping these features back to
images is the bottleneck. Points are added at 3, 10 and 100 % of the clean set. Beside the attack:
canceling and TGDA in pixels, in features, and controls of random points and flipped labels. Labels
of points are drawn evenly. The paper's tables could not be read; no number here is of it.
Expected, each arm's line says it: by L-BFGS "features" as bad as the target, in the small run from
10 % on (11.6, the target 11.5), on the way to it at 3 % (23.9); images a few points below clean at
3 and 10 %, where points in the range of clean features do not reach the target either. In the small
run (one attack key) "matching" costs more than canceling in pixels at 10 % (3.7 and 1.2 points by
SGD, 3.3 and 1.2 to convergence), and about as much at share 1, where flipped labels cost more to
convergence (17.2 against 12.1 and 11.4), but not by SGD (10.9 against 13.1 and 12.0).
At full size the extractor is a ResNet-18 by MoCo-v3 (or SimCLR); with `--scale small` a small CNN
by labels on 5,000 images, victims on the first 500, without TGDA, unlimited and close images.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: at full size an accelerator; `--scale small` minutes on 2 CPU cores. The extractor is kept
in RUNS/pretrained; remove it to pretrain with other settings.

    python -m experiments.cifar10_feature_targeted --data-dir DATA_DIR
"""

import dataclasses

from jaxpoison.report import FeatureConfig, command_line, feature_study
from jaxpoison.report.images import load_images

NAME = "cifar10_feature_targeted"


@dataclasses.dataclass(frozen=True)
class Config(FeatureConfig):
    """Settings of attacks on a head on features of the same data set."""

    SMALL = FeatureConfig.SMALL | {"train_images": 500, "pretrain_images": 5000}


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("cifar10")
    _, known = load_images("cifar10", config.data_dir, config.pretrain_images, config.test_images)
    extractor = config.pretrained(NAME, known, 10)
    return feature_study(
        NAME, config, extractor=extractor, split=split, source=source, num_classes=10
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
