"""Gradient matching: training on the poisons shall move a network as the attacker's loss would."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxpoison import check, tree
from jaxpoison.data.augment import Augmentation
from jaxpoison.data.mixing import Mixing
from jaxpoison.hypergrad.alignment import aligned
from jaxpoison.hypergrad.matching_losses import LOSSES, TARGET_LOSSES, Tensors
from jaxpoison.perturb import Budget
from jaxpoison.types import Key, Objective, Variables, Victim, as_float
from jaxpoison.victims import head_mask

__all__ = ["matching"]


def matching(
    victim: Victim,
    *,
    loss: str = "similarity",
    target_loss: str = "cross_entropy",
    targets: str = "mean",
    params: str = "all",
    centreg: float = 0.0,
    normreg: float = 0.0,
    clip_norm: float | None = None,
    noise: float = 0.0,
    mixing: Mixing | None = None,
    adversarial_eps: float = 0.0,
    adversarial_steps: int = 5,
    clean_rows: int = 128,
    augment: Augmentation | None = None,
) -> Objective:
    """B = l(t, p) + centreg CE + normreg ||p||, by default 1 - <t, p> / (||t|| ||p||).

    t = d mean_j L(f(x_t^j), y^j) / d params,  p = d CE / d params,  CE = mean_i CE(f(x_i), y_i) of
    the poisons x_i. The network is in eval mode: running statistics are constants, no dropout. With
    v = dB/dp held constant, the image gradient is one Hessian-vector product,

        dB/dx = d/ds  d CE_{params + s v} / dx  at s = 0  (+ centreg d CE / dx, its primal),

    taken forward over reverse: no second reverse pass. v has length 1 in that pass and its own
    length afterwards, so that small gradients survive a network that computes in bfloat16.

    Three victims that defend themselves can be matched: one that trains with clipped and noisy
    gradients, whose p is min(1, c / ||p||) p + c sigma N(0, I); one that mixes its batches, whose
    CE is that of `data.mixing` on the poisons and clean images together; one that poisons its own
    batches (adversarial poisoning), whose p is taken at x + d, where d (`hypergrad.aligned`, held
    constant) makes the poisons teach that clean images are of the poisons' most frequent label.

    Args:
      victim: the surrogate network.
      loss: l, a name in `matching_losses.LOSSES`: "similarity"; "top5-", "top10-",
        "top20-similarity"; "similarity-narrow", "scalar_product", "cosine1", "SE", "MSE".
      target_loss: L, a name in `matching_losses.TARGET_LOSSES`: "cross_entropy" or "margin"
        (Carlini and Wagner) to the labels of `scenario.goal`, those that the attacker wants;
        "untargeted", minus the cross-entropy to them: the goal then holds the true labels.
      targets: "mean", one t of all targets; "each", one t_j per target and the sum of l(t_j, p).
      params: "all", or "head": t and p of the last layer alone (linear transfer).
      centreg: weight of the poisons' own loss, to keep them well classified.
      normreg: weight of ||p||, before clip and noise.
      clip_norm: c; None for no clip, and c = 1 in the noise.
      noise: sigma, drawn anew at every call.
      mixing: of the batch, e.g. `data.mixing.mixup()`; None for none.
      adversarial_eps: L-infinity radius of d, pixel units; 0 for none. The defense's own default
        is the attack's eps.
      adversarial_steps: of d, read where there is one.
      clean_rows: clean images, uniform over the training set: those that are appended to the
        poisons before `mixing`, those that d aims at; read with these alone.
      augment: of those clean images; the poisons come augmented.

    Returns: an Objective whose aim is t, a list of tensors.
    Raises: InputError for a bad value, named; when called, for a network without a last layer where
      that is needed ("head", "similarity-narrow").
    Cost: 7 forward passes of the poisons, and 7 more for every step of d.
    Source: Geiping et al. 2021, equation 3 and released code; "each" its successor's
      gradient-matching-mt. Clip and noise are what that code means (it discards the clip);
      mixing its "pmix", d its "padversarial" with clean images as temporary targets.
    """
    check.one_of(LOSSES, loss=loss)
    check.one_of(TARGET_LOSSES, target_loss=target_loss)
    check.one_of(("mean", "each"), targets=targets)
    check.one_of(("all", "head"), params=params)
    check.number(least=0, centreg=centreg, normreg=normreg, noise=noise)
    if clip_norm is not None:
        check.positive(clip_norm=clip_norm)
    check.number(least=0, adversarial_eps=adversarial_eps)
    if not _off(adversarial_eps):
        Budget("linf", adversarial_eps)
    check.at_least(1, clean_rows=clean_rows, adversarial_steps=adversarial_steps)
    distance, goal_loss = LOSSES[loss], TARGET_LOSSES[target_loss]

    def chosen(variables, image):
        """The tensors that count, how to put them back, and which of them are the last layer."""
        leaves, structure = jax.tree.flatten(variables.params)
        last = [False] * len(leaves)
        if params == "head" or loss == "similarity-narrow":
            last = jax.tree.leaves(head_mask(victim, image.shape[1:]))
        counts = last if params == "head" else [True] * len(leaves)

        def variables_of(tensors):
            new = iter(tensors)
            full = [next(new) if c else old for c, old in zip(counts, leaves, strict=True)]
            return Variables(jax.tree.unflatten(structure, full), variables.stats)

        own = [leaf for leaf, c in zip(leaves, counts, strict=True) if c]
        return own, variables_of, [x for x, c in zip(last, counts, strict=True) if c]

    def aim(key, variables, scenario):
        del key
        image, label = as_float(scenario.goal.image), scenario.goal.label
        own, variables_of, _ = chosen(variables, image)

        def gradient(batch):
            def mean_loss(own):
                logits, _ = victim.apply(variables_of(own), batch[0], train=False)
                return jnp.mean(goal_loss(logits, batch[1]))

            return jax.grad(mean_loss)(own)

        if targets == "mean":
            return gradient((image, label))
        return lax.map(gradient, (image[:, None], label[:, None]))

    def clean_images(key, scenario, dtype):
        """Clean images, augmented, and their labels."""
        rows_key, augment_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (clean_rows,), 0, scenario.train.label.shape[0])
        clean = as_float(scenario.train.image[rows]).astype(dtype)
        return clean if augment is None else augment(augment_key, clean), scenario.train.label[rows]

    def poisoned_by_victim(key, own, variables_of, batch, scenario):
        """The poisons x as x + d."""
        clean_key, start_key = jax.random.split(key)
        clean, _ = clean_images(clean_key, scenario, batch.image.dtype)
        alike = jnp.sum(batch.label[:, None] == batch.label[None], axis=1)
        wrong = jnp.full(clean_rows, batch.label[jnp.argmax(alike)])

        def gradient(image, label):
            def mean_loss(own):
                logits, _ = victim.apply(variables_of(own), image, train=False)
                return jnp.mean(_cross_entropy(logits, label))

            return jax.grad(mean_loss)(own)

        def taught(image):
            return gradient(image, batch.label)

        how = {"eps": adversarial_eps, "steps": adversarial_steps}
        return batch.image + aligned(start_key, taught, batch.image, gradient(clean, wrong), **how)

    def trained_on(key, batch, scenario):
        """Image -> (what the victim trains on, labels [J, B], their weights [J])."""
        if mixing is None:
            return lambda image: (image, batch.label[None], jnp.ones(1, image.dtype))
        clean_key, mix_key = jax.random.split(key)
        clean, clean_label = clean_images(clean_key, scenario, batch.image.dtype)
        label = jnp.concatenate([batch.label, clean_label])

        def mixed(image):
            image, weight, rows = mixing(mix_key, jnp.concatenate([image, clean]))
            return image, label[rows], weight

        return mixed

    def value_and_grad(key, variables, aim, batch, scenario):
        noise_key, mix_key, attack_key = jax.random.split(key, 3)
        own, variables_of, last = chosen(variables, batch.image)
        if not _off(adversarial_eps):
            image = poisoned_by_victim(attack_key, own, variables_of, batch, scenario)
            batch = batch._replace(image=image)
        prepare = trained_on(mix_key, batch, scenario)

        def poison_loss(own, image):
            image, labels, weight = prepare(image)
            logits, _ = victim.apply(variables_of(own), image, train=False)
            losses = jax.vmap(_cross_entropy, (None, 0))(logits, labels)
            return jnp.dot(weight, jnp.mean(losses, axis=1))

        def match(p):
            seen = _defended(noise_key, p, clip_norm, noise)
            if targets == "mean":
                value = distance(aim, seen, last)
            else:
                value = jnp.sum(jax.vmap(lambda t: distance(t, seen, last))(aim))
            return value if _off(normreg) else value + normreg * tree.norm(p)

        own_loss, p = jax.value_and_grad(poison_loss)(own, batch.image)
        value, direction = jax.value_and_grad(match)(p)
        length = tree.norm(direction)
        unit = [x / jnp.where(length > 0, length, 1).astype(x.dtype) for x in direction]
        slope, mixed = jax.jvp(
            lambda own: jax.grad(poison_loss, 1)(own, batch.image), (own,), (unit,)
        )
        gradient = length.astype(mixed.dtype) * mixed
        if _off(centreg):
            return value, gradient
        return value + centreg * own_loss, gradient + centreg * slope

    return Objective(aim, value_and_grad)


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def _defended(key: Key, p: Tensors, clip_norm: Any, noise: Any) -> Tensors:
    """min(1, c / ||p||) p + c sigma N(0, I)."""
    if clip_norm is not None:
        size = tree.norm(p)
        scale = jnp.minimum(1, clip_norm / jnp.where(size > 0, size, 1))
        p = [scale.astype(x.dtype) * x for x in p]
    if _off(noise):
        return p
    spread = noise * (1.0 if clip_norm is None else clip_norm)
    keys = jax.random.split(key, len(p))
    return [
        x + spread * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, p, strict=True)
    ]


def _off(weight: Any) -> bool:
    """Whether a term needs no code: its weight is a plain zero, not a traced number."""
    return not isinstance(weight, jax.core.Tracer) and float(weight) == 0
