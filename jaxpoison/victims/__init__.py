"""Victims in training: how they learn, by which recipe, and how they are judged."""

from jaxpoison.victims import extractor_recipes, recipes
from jaxpoison.victims.adversarial import (
    adversarial_learner,
    assess_robust,
    pgd,
    trades_learner,
)
from jaxpoison.victims.checkpoints import Checkpointed, checkpoint_epochs, checkpoints_along
from jaxpoison.victims.classical import (
    CLASSICAL,
    Classical,
    fit_classical,
    judge_classical,
    judge_fits,
    score_fits,
)
from jaxpoison.victims.contrastive import MoCoV3, SimCLR, contrastive_training, pretrained
from jaxpoison.victims.contrastive_losses import info_nce, nt_xent
from jaxpoison.victims.convergence import (
    Solved,
    ToConvergence,
    converge,
    convergent_training,
)
from jaxpoison.victims.decoding import (
    DecoderInfo,
    Pairs,
    PairSplit,
    Reconstruction,
    decode,
    decoder_training,
    pairs,
    reconstruction,
)
from jaxpoison.victims.ensemble import Staggered, stagger_epochs, staggered
from jaxpoison.victims.evaluate import (
    Assessment,
    Interval,
    Judgment,
    accuracy,
    assess,
    confusion,
    hits,
    interval,
    judge,
    logits,
    targeted,
)
from jaxpoison.victims.extract import (
    Extractor,
    extract,
    extractor,
    join_head,
    on_features,
    split_head,
)
from jaxpoison.victims.gradients import mean_gradient
from jaxpoison.victims.head import (
    head_mask,
    new_head,
    partial_variables,
    partial_victim,
    whole_variables,
)
from jaxpoison.victims.learner import learner
from jaxpoison.victims.online import poisoned_online
from jaxpoison.victims.paired import Paired, mcnemar, paired, sign_test, wilcoxon
from jaxpoison.victims.pretrain import pretrain
from jaxpoison.victims.probe import Probe, linear_probe, linear_separability
from jaxpoison.victims.recipe import Recipe
from jaxpoison.victims.similarity import Similarity, residual_energy, similarity
from jaxpoison.victims.store import Card, Trained, load, save
from jaxpoison.victims.streamed import judge_streamed, streamed_training
from jaxpoison.victims.targets import OnTargets, on_targets, read_targets
from jaxpoison.victims.train import training, victim_training
from jaxpoison.victims.transfer import (
    Transfer,
    TransferSplit,
    fine_tuning,
    linear_transfer,
    transfer,
    transfer_training,
)
from jaxpoison.victims.watched import Watched, WatchedInfo, watched

__all__ = [
    "Assessment",
    "CLASSICAL",
    "Card",
    "Checkpointed",
    "Classical",
    "DecoderInfo",
    "Extractor",
    "Interval",
    "Judgment",
    "MoCoV3",
    "OnTargets",
    "PairSplit",
    "Paired",
    "Pairs",
    "Probe",
    "Recipe",
    "Reconstruction",
    "SimCLR",
    "Similarity",
    "Solved",
    "Staggered",
    "ToConvergence",
    "Trained",
    "Transfer",
    "TransferSplit",
    "Watched",
    "WatchedInfo",
    "accuracy",
    "adversarial_learner",
    "assess",
    "assess_robust",
    "checkpoint_epochs",
    "checkpoints_along",
    "confusion",
    "contrastive_training",
    "converge",
    "convergent_training",
    "decode",
    "decoder_training",
    "extract",
    "extractor",
    "extractor_recipes",
    "fine_tuning",
    "fit_classical",
    "head_mask",
    "hits",
    "info_nce",
    "interval",
    "join_head",
    "judge",
    "judge_classical",
    "judge_fits",
    "judge_streamed",
    "learner",
    "linear_probe",
    "linear_separability",
    "linear_transfer",
    "load",
    "logits",
    "mcnemar",
    "mean_gradient",
    "new_head",
    "nt_xent",
    "on_features",
    "on_targets",
    "paired",
    "pairs",
    "partial_variables",
    "partial_victim",
    "pgd",
    "poisoned_online",
    "pretrain",
    "pretrained",
    "read_targets",
    "recipes",
    "reconstruction",
    "residual_energy",
    "save",
    "score_fits",
    "sign_test",
    "similarity",
    "split_head",
    "stagger_epochs",
    "staggered",
    "streamed_training",
    "targeted",
    "trades_learner",
    "training",
    "transfer",
    "transfer_training",
    "victim_training",
    "watched",
    "whole_variables",
    "wilcoxon",
]
