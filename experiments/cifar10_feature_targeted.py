"""CIFAR-10: added points against a head on an extractor pretrained on CIFAR-10 itself.

Claim (Lu et al. 2024, fine-tuning on the same data set): a victim that trains a linear head on
frozen, trusted features loses accuracy to a few added images whose features cancel its gradient at
a corrupted head. Canceling in feature space reaches the target head; mapping these features back to
images is the bottleneck. Points are added at 3, 10 and 100 % of the clean set. Beside the attack:
canceling and TGDA in pixels, in features, and controls of random points and flipped labels. Labels
of points are random. The paper's tables could not be read; no number here is of it.
Expected: "features" as bad as the target (about 10 %); "matching" and "decoder" between that and
the control; "pixels" (no limit) below "pixels-box" and "pixels-linf".
At full size the extractor is a ResNet-18 by MoCo-v3 (or SimCLR); with `--scale small` a small CNN
by labels on 5,000 images, victims on the first 2,000.
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

    SMALL = {
        "pretraining": "small_supervised",
        "train_images": 2000,
        "test_images": 2000,
        "pretrain_images": 5000,
        "cancel_steps": 600,
        "match_steps": 300,
        "decoder_epochs": 10,
        "shares": (0.03, 0.1),
    }


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
