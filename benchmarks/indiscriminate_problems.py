"""Attacks by added points on fixed problems: heads on features, small networks; their settings.

Features are noise, labels random, the target is a network as it is drawn: a step costs the same on
any data. There are as many clean rows as points; they enter through their mean gradient, once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import problems
from jaxpoison import attacks, hypergrad, models, tree, victims
from jaxpoison.types import Attack, Dataset, Scenario, Variables

__all__ = [
    "BETA",
    "RATE",
    "Canceling",
    "Inversion",
    "Solving",
    "attack",
    "canceling",
    "frozen_noise",
    "head",
    "inversion",
    "matching",
    "noise",
    "scenario",
    "solve",
    "solving",
    "sweep",
    "with_head",
]

RATE, BETA = 1e-3, 0.25
MOVED = 0.1  # by which wanted features differ from those of the base image, in each coordinate
POINTS, WIDTHS = (300, 1500, 6000), (128, 512, 2048)
MANY_POINTS, MANY_WIDTHS = (100, 300, 1500, 6000, 24000), (32, 128, 512, 2048, 8192)
FAR = 10**6  # steps of a schedule whose rate hardly falls


class Canceling(NamedTuple):
    """A run of gradient canceling.

    Attributes:
      problem: network, shape of a point, number of points P.
      steps: in one program, as `run` has them.
    """

    problem: problems.Problem
    steps: int


class Solving(NamedTuple):
    """Products with a Hessian, one after the other.

    Attributes:
      problem: network and number of rows of the loss.
      method: "Hessian products", "cg" or "normal_cg" (two products an iteration).
      iterations: of it.
      damping: on the diagonal.
    """

    problem: problems.Problem
    method: str
    iterations: int
    damping: float


class Inversion(NamedTuple):
    """Feature matching of all points at once.

    Attributes:
      problem: network whose features are matched, number of points P.
      steps: in one program.
    """

    problem: problems.Problem
    steps: int


def canceling(*, smoke: bool) -> list[Canceling]:
    """Heads at every P and D, then MNIST's logistic regression, MLP and CNN in pixels.

    P = 1800 are 3 % of MNIST.
    """
    if smoke:
        return [Canceling(head(6, 5), 2), Canceling(mlp((4, 4, 1), 4, (3,)), 2)]
    heads = [_some_steps(head(points, width)) for width in WIDTHS for points in POINTS]
    nets = [mlp((28, 28, 1), 1800, ()), mlp((28, 28, 1), 1800, (128,))]
    cnn = problems.small_cnn("max", (28, 28, 1), 128, (32, 64, 128))
    return [*heads, *(Canceling(net, 2) for net in (*nets, cnn))]


def solving(*, smoke: bool) -> list[Solving]:
    """Hessian products, CG and normal CG at logistic regression, an MLP and a CNN."""
    if smoke:
        nets, iterations = [mlp((4, 4, 1), 6, ())], 3
    else:
        nets, iterations = [mlp((28, 28, 1), 1000, hidden) for hidden in ((), (128,))], 16
        nets.append(problems.small_cnn("max", (28, 28, 1), 128, (32, 64, 128)))
    methods = {"Hessian products": 0.0, "cg": 1e-2, "normal_cg": 1e-2}
    return [
        Solving(net, method, iterations if "hidden" in net.options else 2, damping)
        for net in nets
        for method, damping in methods.items()
        if method != "cg" or not net.options.get("hidden", True)  # elsewhere H is indefinite
    ]


def solve(work: Solving, dtype: Any = jnp.float32) -> Any:
    """(scenario) -> ||v||, v solved for at the target and the mean loss of all rows.

    Hessian products: p <- H p / ||H p||, begun at the gradient, as is b of the others; ||v|| is
    then that of the last product.
    """
    victim = work.problem.victim(dtype)

    def run(scenario):
        train, (params, stats) = scenario.train, scenario.aux

        def loss(params):
            scores, _ = victim.apply(Variables(params, stats), train.image, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(scores, train.label)
            return jnp.mean(losses)

        b, product = jax.linearize(jax.grad(loss), params)
        if work.method == "Hessian products":

            def step(p, _):
                moved = product(p)
                size = tree.norm(moved)
                return jax.tree.map(lambda x: x / size, moved), size

            return jax.lax.scan(step, b, length=work.iterations)[1][-1]
        solver = {"cg": hypergrad.cg, "normal_cg": hypergrad.normal_cg}[work.method]
        v, _ = solver(product, b, iterations=work.iterations, damping=work.damping)
        return tree.norm(v)

    return run


def inversion(*, smoke: bool, accelerator: bool) -> list[Inversion]:
    """Feature matching through the small CNN, on an accelerator through ResNet-18 too."""
    if smoke:
        return [Inversion(problems.small_cnn("avg", (4, 4, 1), 4, (2,)), 2)]
    found = [Inversion(problems.small_cnn("avg", (28, 28, 1), 128, (32, 64, 128)), 2)]
    if accelerator:
        found.append(Inversion(problems.resnet18((32, 32, 3), 500), 10))
    return found


def matching(work: Inversion, dtype: Any = jnp.float32) -> tuple[Attack, Scenario]:
    """The feature-targeted attack and its scenario; after one step it inverts features."""
    problem = work.problem
    extractor, given = problem.victim(dtype), scenario(problem)
    image = jax.ShapeDtypeStruct((1, *problem.image_shape), jnp.float32)
    width = jax.eval_shape(extractor.features, given.aux, image).shape[1]
    head = models.logistic_regression((1, 1, width), problems.NUM_CLASSES)
    attack = attacks.feature_targeted(
        extractor, head, corruption=None, beta=BETA, cancel_steps=1, cancel_rate=MOVED,
        match_steps=FAR, match_rate=RATE, batch_size=problem.batch,
    )  # fmt: skip
    own = jax.jit(head.init)(jax.random.key(2))
    return attack, given._replace(aux=victims.join_head(given.aux, own))


def noise(*, smoke: bool, accelerator: bool) -> list[problems.Problem]:
    """Heads on the small CNN, on an accelerator on ResNet-18 too."""
    if smoke:
        return [problems.small_cnn("avg", (4, 4, 1), 4, (2,))]
    found = [problems.small_cnn("avg", (28, 28, 1), 128, (32, 64, 128))]
    return [*found, problems.resnet18((32, 32, 3), 512)] if accelerator else found


def frozen_noise(problem: problems.Problem, dtype: Any = jnp.float32) -> tuple[Attack, Scenario]:
    """One round of noise for a head: a head update, a sign step on every image, the stop test."""
    extractor, given = problem.victim(dtype), problems.scenario(problem)
    known = jax.jit(extractor.init)(jax.random.key(1))
    image = jax.ShapeDtypeStruct((1, *problem.image_shape), jnp.float32)
    width = jax.eval_shape(extractor.features, known, image).shape[1]
    head = models.logistic_regression((1, 1, width), problems.NUM_CLASSES)
    attack = attacks.frozen_error_minimizing(
        extractor, head, num_classes=problems.NUM_CLASSES, eps=problems.EPS, train_steps=1,
        sweep_steps=1, step_size=problems.STEP_SIZE, stop_error=0.0,
        tx=problems.optimizer(problems.SURROGATE), batch_size=problem.batch,
    )  # fmt: skip
    own = jax.jit(head.init)(jax.random.key(2))
    return attack, given._replace(aux=victims.join_head(known, own))


def with_head(state: Any) -> Variables:
    """The extractor of a state of that attack with its head as last layer, for the baseline."""
    whole, (own,) = state.phi.stats["extractor"], state.phi.params.values()
    (last,) = (name for name, layer in whole.params.items() if _is_like(layer, own))
    return Variables(whole.params | {last: own}, whole.stats)


def _is_like(layer: Any, head: Any) -> bool:
    shapes = [jax.tree.map(jnp.shape, one) for one in (layer, head)]
    return shapes[0] == shapes[1]


def sweep(*, smoke: bool) -> list[Canceling]:
    """Heads against P at D = 512 and against D at P = 1500."""
    if smoke:
        return [Canceling(head(points, 5), 2) for points in (4, 8)]
    wide = [_some_steps(head(1500, width)) for width in MANY_WIDTHS]
    return [*(_some_steps(head(points, 512)) for points in MANY_POINTS), *wide]


def _some_steps(problem: problems.Problem) -> Canceling:
    """2 to 20 steps, the more the cheaper one is."""
    return Canceling(problem, int(np.clip(4e6 / (problem.batch * problem.image_shape[2]), 2, 20)))


def head(points: int, width: int) -> problems.Problem:
    """A linear head on features [P, 1, 1, D]."""
    return mlp((1, 1, width), points, (), name=f"head on {width} features")


def mlp(
    shape: tuple[int, int, int], points: int, hidden: tuple[int, ...], *, name: str | None = None
) -> problems.Problem:
    """An MLP without BatchNorm; without hidden layers logistic regression."""

    def victim(dtype=jnp.float32):
        return models.mlp(shape, problems.NUM_CLASSES, hidden=hidden, batch_norm=False, dtype=dtype)

    widths = (int(np.prod(shape)), *hidden, problems.NUM_CLASSES)
    name = name or "MLP " + "-".join(str(width) for width in widths)
    options = {"hidden": hidden, "norm": False, "logits_norm": False}
    return problems.Problem(name, shape, points, "mlp", options, victim)


def attack(problem: problems.Problem, dtype: Any = jnp.float32) -> Attack:
    """Gradient canceling as the library has it: means, all parameters, Adam, no constraint.

    Dense networks take all points at once.
    """
    at_once = 1000 if problem.options.get("hidden") is None else problem.batch
    return attacks.gradient_canceling(
        problem.victim(dtype), steps=FAR, learning_rate=RATE, batch_size=at_once
    )


def scenario(problem: problems.Problem) -> Scenario:
    """N = P rows, one point for each; the target is a network as it is drawn."""
    random = np.random.default_rng(problems.SEED)
    value = random.random((problem.batch, *problem.image_shape), np.float32)
    label = random.integers(0, problems.NUM_CLASSES, problem.batch, dtype=np.int32)
    data = Dataset(jnp.asarray(value), jnp.asarray(label))
    target = jax.jit(problem.victim().init)(jax.random.key(1))
    return Scenario(data, data, jnp.arange(problem.batch, dtype=jnp.int32), target)
