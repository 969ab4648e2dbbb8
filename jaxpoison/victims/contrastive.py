"""Self-supervised pretraining: SimCLR (Chen et al. 2020) and MoCo-v3 (Chen, Xie and He 2021).

SimCLR   z = g(f(view)); NT-Xent between the two views of a batch.
MoCo-v3  q = h(g(f(view))), k = g'(f'(other view)); InfoNCE both ways; f', g' are a moving average.

f are the features of any network that has `embed`. Labels train nothing but the network's last
layer, an online probe on features that it cannot change: so a pretrained network is a classifier
as well, and its test accuracy is that of the probe.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxpoison import check, models, tree
from jaxpoison.data.saved import tuples
from jaxpoison.data.views import Views
from jaxpoison.types import (
    InputError,
    Learner,
    Training,
    TrainState,
    Variables,
    Victim,
)
from jaxpoison.victims.contrastive_losses import (
    cosine_momentum,
    info_nce,
    nt_xent,
)
from jaxpoison.victims.head import head_mask
from jaxpoison.victims.learner import StepInfo, share
from jaxpoison.victims.recipe import Recipe
from jaxpoison.victims.train import check_batch, of_rows, training

__all__ = ["MoCoV3", "SimCLR", "as_dict", "contrastive_training", "from_dict", "pretrained"]

PROBE_RATE = 1e-3  # Adam of the last layer, which no source needs


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """Settings of SimCLR: NT-Xent between two views of a batch.

    BatchNorm sees both views of a batch as one batch of 2B.

    Attributes:
      temperature: t of the loss, above 0.
      projector: widths of the layers of g; the last is the embedding, d >= 2. BatchNorm after every
        layer, the last without scale and shift; ReLU between.
      views: how the two views are drawn.
    """

    method: ClassVar[str] = "simclr"
    temperature: float = 0.5
    projector: tuple[int, ...] = (512, 128)
    views: Views = Views()

    def __post_init__(self):
        check.positive(temperature=self.temperature)
        _check_widths("projector", self.projector)


@dataclasses.dataclass(frozen=True)
class MoCoV3:
    """Settings of MoCo-v3: InfoNCE against a momentum encoder, both ways.

    Each view is a BatchNorm batch of its own; the momentum encoder uses batch statistics.

    Attributes:
      temperature: t of the loss, above 0.
      projector: as in `SimCLR`.
      predictor: widths of the layers of h, the last as that of the projector; BatchNorm after all
        but the last.
      momentum: m_0 of the moving average, in [0, 1).
      cosine: whether m rises to 1 over the run, by half a cosine; else it stays.
      views: how the two views are drawn.
    """

    method: ClassVar[str] = "moco_v3"
    temperature: float = 1.0
    projector: tuple[int, ...] = (4096, 256)
    predictor: tuple[int, ...] = (4096, 256)
    momentum: float = 0.99
    cosine: bool = True
    views: Views = Views()

    def __post_init__(self):
        check.positive(temperature=self.temperature)
        _check_widths("projector", self.projector)
        _check_widths("predictor", self.predictor)
        if self.predictor[-1] != self.projector[-1]:
            raise InputError(
                f"predictor = {self.predictor}; its last width must be the projector's, "
                f"{self.projector[-1]}"
            )
        check.number(least=0, below=1, momentum=self.momentum)


def as_dict(method: SimCLR | MoCoV3) -> dict[str, Any]:
    """The settings as JSON values, with the method's name; `from_dict` undoes it."""
    return {"method": method.method} | dataclasses.asdict(method)


def from_dict(content: dict[str, Any]) -> SimCLR | MoCoV3:
    """The method that `as_dict` stored."""
    settings = {name: tuples(value) for name, value in content.items()}
    kind = {known.method: known for known in (SimCLR, MoCoV3)}[settings.pop("method")]
    views = {name: tuples(value) for name, value in settings.pop("views").items()}
    return kind(**settings, views=Views(**views))


def contrastive_training(
    victim: Victim,
    method: SimCLR | MoCoV3,
    recipe: Recipe,
    num_train: int,
    *,
    image_shape: Sequence[int],
    mesh: Mesh | None = None,
    axis: str = "batch",
) -> Training:
    """Self-supervised training of a network's features, one epoch a step.

    The parameters are {"network", "projector"[, "predictor"]}; `pretrained` takes the network out.
    Of the network's parameters the last layer alone (`head_mask`) follows the labels: Adam at
    0.001 on the cross-entropy of both views, with no gradient into the features. All else follows
    the contrastive loss by the recipe's optimizer; `outer_loss` and `grad_norm` are of that loss,
    the accuracies of EpochInfo of the last layer.

    Args:
      victim: a network with `embed`: any of `jaxpoison.models`.
      method: SimCLR or MoCoV3.
      recipe: epochs, batch, optimizer and schedule; its augmentation must be "none" (the views are
        the method's), and it cannot be adversarial.
      num_train: N of the training sets it will see.
      image_shape: (H, W, C).
      mesh: devices to spread each batch over; see `victims.training`. Negatives and BatchNorm are
        those of the whole batch.
      axis: name of its axis.

    Returns: Training over a Split.
    Raises: InputError for a network without `embed` or without a last layer, a recipe with
      augmentation, adversarial or of batches of one row; as `victim_training`.
    Cost: SimCLR a pass over 2B rows, MoCo-v3 two over B and two forward passes.
    """
    _check_recipe(recipe, num_train)
    if victim.embed is None:
        raise InputError("the network has no `embed`: self-supervised pretraining needs it")
    image_shape = tuple(image_shape)
    mask = head_mask(victim, image_shape)
    parts = _parts(victim, method, image_shape)
    total = recipe.epochs * recipe.steps_per_epoch(num_train)
    if isinstance(method, MoCoV3):
        algorithm = _moco(parts, method, total)
    else:
        algorithm = _simclr(parts, method)
    rule = _optimizer(recipe.optimizer_for(num_train), mask)
    model = _learner(parts, algorithm, method.views, rule, mask)
    return of_rows(training(model, recipe, mesh=mesh, axis=axis), num_train)


def pretrained(state: TrainState | Variables) -> Variables:
    """The network's own arrays out of a state of `contrastive_training`, stacked ones too."""
    return Variables(state.params["network"], state.stats["network"])


class _Algorithm(NamedTuple):
    """What tells the methods from one another.

    Attributes:
      extra: (params) -> further entries of `stats`.
      targets: (key, params, stats, views) -> (constants, further entries of stats).
      queries: (key, params, stats, views) -> (two of [B, d], logits [2B, L], new stats).
      losses: (queries, constants) -> [B].
    """

    extra: Callable[..., dict[str, Any]]
    targets: Callable[..., tuple[Any, dict[str, Any]]]
    queries: Callable[..., Any]
    losses: Callable[..., Any]


def _simclr(parts: dict[str, Victim], method: SimCLR) -> _Algorithm:
    def queries(key, params, stats, views):
        both = jnp.concatenate(views)
        z, scores, stats = _embedded(parts, ("projector",), key, params, stats, both)
        return tuple(jnp.split(z, 2)), scores, stats

    def losses(queries, constants):
        del constants
        return nt_xent(*queries, temperature=method.temperature)

    return _Algorithm(lambda params: {}, lambda *arguments: ((), {}), queries, losses)


def _moco(parts: dict[str, Victim], method: MoCoV3, total: int) -> _Algorithm:
    average = ("network", "projector")

    def extra(params):
        start = jax.tree.map(jnp.array, {name: params[name] for name in average})
        return {"momentum": start, "count": jnp.zeros((), jnp.int32)}

    def targets(key, params, stats, views):
        count, rate = stats["count"], method.momentum
        rate = cosine_momentum(rate, count, total) if method.cosine else rate
        now = {name: params[name] for name in average}
        moved = optax.incremental_update(now, stats["momentum"], 1 - rate)
        keys = [
            _embedded(parts, ("projector",), jax.random.fold_in(key, i), moved, stats, view)[0]
            for i, view in enumerate(views)
        ]
        return tuple(map(jax.lax.stop_gradient, keys)), {"momentum": moved, "count": count + 1}

    def queries(key, params, stats, views):
        found, scores = [], []
        for i, view in enumerate(views):
            own = jax.random.fold_in(key, i)
            z, logits, stats = _embedded(
                parts, ("projector", "predictor"), own, params, stats, view
            )
            found.append(z)
            scores.append(logits)
        return tuple(found), jnp.concatenate(scores), stats

    def losses(queries, keys):
        first = info_nce(queries[0], keys[1], temperature=method.temperature)
        return first + info_nce(queries[1], keys[0], temperature=method.temperature)

    return _Algorithm(extra, targets, queries, losses)


def _learner(
    parts: dict[str, Victim],
    algorithm: _Algorithm,
    views: Views,
    rule: optax.GradientTransformation,
    mask: Any,
) -> Learner:
    """Update of the whole: the contrastive loss on all but the last layer, the labels on that."""
    network = parts["network"]
    first_view, second_view = views.augmentations()

    def init(key):
        keys = jax.random.split(key, len(parts))
        drawn = {name: part.init(k) for k, (name, part) in zip(keys, parts.items(), strict=True)}
        params = {name: variables.params for name, variables in drawn.items()}
        stats = {name: variables.stats for name, variables in drawn.items()}
        return TrainState(params, stats | algorithm.extra(params), rule.init(params))

    def drawn(key, params, stats, batch):
        """The two views, the keys' side, and the query's side as a function of the parameters."""
        one_key, two_key, target_key, query_key = jax.random.split(key, 4)
        pair = (first_view(one_key, batch.image), second_view(two_key, batch.image))
        constants, moved = algorithm.targets(target_key, params, stats, pair)

        def forward(params):
            queries, scores, new = algorithm.queries(query_key, params, stats, pair)
            return (queries, scores), new | moved

        return constants, forward

    def value(queries, constants, weight):
        return share(algorithm.losses(queries, constants), weight, jnp.sum(weight))

    def loss(key, params, stats, batch):
        constants, forward = drawn(key, params, stats, batch)
        (queries, scores), new = forward(params)
        return value(queries, constants, batch.weight), (scores[: len(batch.label)], new)

    def step(key, phi, batch):
        constants, forward = drawn(key, phi.params, phi.stats, batch)
        (queries, scores), pull, stats = jax.vjp(forward, phi.params, has_aux=True)
        now, of_queries = jax.value_and_grad(value)(queries, constants, batch.weight)
        label, weight = jnp.tile(batch.label, 2), jnp.tile(batch.weight, 2)
        of_scores = jax.grad(_probe_loss)(scores, label, weight)
        (own,) = pull((of_queries, jnp.zeros_like(scores)))
        (probe,) = pull((jax.tree.map(jnp.zeros_like, of_queries), of_scores))
        size = tree.norm(own)
        own["network"] = _chosen(mask, probe["network"], own["network"])
        updates, opt_state = rule.update(own, phi.opt_state, phi.params)
        params = optax.apply_updates(phi.params, updates)
        right = (jnp.argmax(scores, axis=1) == label).astype(jnp.float32)
        finite = jnp.isfinite(now) & jnp.isfinite(size)
        info = StepInfo(now, size, finite, share(right, weight, jnp.sum(weight)))
        return TrainState(params, stats, opt_state), info

    def apply(variables, image, *, train, key=None):
        inner = pretrained(variables)
        scores, stats = network.apply(inner, image, train=train, key=key)
        return scores, variables.stats | {"network": stats}

    def features(variables, image):
        return network.features(pretrained(variables), image)

    def init_variables(key):
        return init(key).variables

    return Learner(Victim(init_variables, apply, features), init, loss, step)


def _embedded(parts, heads, key, params, stats, image):
    """(embedding [B, d], logits [B, L], stats with those of the parts moved), train mode."""
    network = Variables(params["network"], stats["network"])
    z, scores, moved = parts["network"].embed(network, image, train=True, key=key)
    new = stats | {"network": moved}
    for name in heads:
        head = Variables(params[name], stats[name])
        z, new[name] = parts[name].apply(head, z[:, None, None, :], train=True)
    return z, scores, new


def _parts(
    victim: Victim, method: SimCLR | MoCoV3, image_shape: tuple[int, ...]
) -> dict[str, Victim]:
    """The network and its heads, each a network on the output of the one before."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(victim.init, jax.random.key(0))
    width = jax.eval_shape(victim.features, variables, image).shape[-1]
    *hidden, out = method.projector
    projector = models.mlp((1, 1, width), out, hidden=hidden, logits_affine=False, bias=False)
    parts = {"network": victim, "projector": projector}
    if isinstance(method, MoCoV3):
        *hidden, last = method.predictor
        parts["predictor"] = models.mlp(
            (1, 1, out), last, hidden=hidden, logits_norm=False, bias=False
        )
    return parts


def _optimizer(rule: optax.GradientTransformation, mask: Any) -> optax.GradientTransformation:
    """The recipe's rule for everything but the last layer, which has Adam."""

    def labels(params):
        others = {k: jax.tree.map(lambda _: "rest", v) for k, v in params.items() if k != "network"}
        return others | {"network": jax.tree.map(lambda own: "probe" if own else "rest", mask)}

    return optax.partition({"rest": rule, "probe": optax.adam(PROBE_RATE)}, labels)


def _probe_loss(scores, label, weight):
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, label)
    return share(losses, weight, jnp.sum(weight))


def _chosen(mask, first, second):
    return jax.tree.map(lambda own, a, b: a if own else b, mask, first, second)


def _check_widths(name: str, widths: Sequence[int]) -> None:
    if not widths:
        raise InputError(f"{name} = {tuple(widths)}; at least one width is needed")
    for width in widths:
        check.at_least(2, **{name: width})


def _check_recipe(recipe: Recipe, num_train: int) -> None:
    check_batch(recipe, num_train)
    check.at_least(2, batch_size=recipe.batch_size)
    check.one_of(("none",), augmentation=recipe.augmentation, adversarial=recipe.adversarial)
    if not recipe.drop_last and num_train % recipe.batch_size == 1:
        raise InputError(
            f"the last batch of {num_train} rows in batches of {recipe.batch_size} would be a "
            "single row, which has no negatives; set drop_last"
        )
