"""The phase transition of gradient canceling: what added points can do below and above tau.

Claim (Lu et al. 2023): target parameters of a linear classifier are reachable by added points of
total weight eps if and only if eps >= tau, and the smallest residual falls in a straight line to 0
there. Lines are `hypergrad.reachability` (closed forms), dots what L-BFGS on four points attains;
the kink is that of max(0, a (k - eps / tau)) fitted to the dots. Retrained: logistic regression
without bias at its minimum on the clean rows and the closed-form point, above tau the one that
cancels exactly, below the one that comes nearest.
Expected: kinks within 0.05 of 1; on the Gaussian set of seed 0 a clean accuracy of 0.8744, tau of
9.0215, 0.5514 and 0.0461 for -w, -0.1 w and -0.01 w, and 0.1256 after retraining above tau: 4.7 %
of added weight turns the classifier round.
Data: 1000 rows of two Gaussians (5 seeds), embedded; with --data-dir 1 against 7 of MNIST's
first 10,000 images as well (prepared for TFDS, or mnist-train.npz and mnist-test.npz), weight decay
0.001.
Device: any, in float64; minutes on 2 CPU cores.

    python -m experiments.gaussian_phase_transition [--data-dir DATA_DIR]
"""

import dataclasses
import datetime
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.optimize import minimize_scalar

import jaxpoison as jp
from jaxpoison import checkpoint
from jaxpoison.hypergrad import reachability as theory
from jaxpoison.report import command_line, figures, record
from jaxpoison.report.work import Work
from jaxpoison.victims import (
    Interval,
    ToConvergence,
    accuracy,
    converge,
    interval,
    mean_gradient,
)

NAME, POINTS, DECAY = "gaussian_phase_transition", 4, 1e-3


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the phase transition."""

    name: str = "default"
    """Run folder: RUNS/gaussian_phase_transition/NAME."""
    runs: pathlib.Path = pathlib.Path("runs")
    """Where run folders are."""
    overwrite: bool = False
    """Remove an earlier run of this name and compute it again."""
    data_dir: pathlib.Path | None = None
    """Where MNIST is; without it only the Gaussian sets."""
    seeds: int = 5
    """Gaussian data sets, numpy's default_rng(0) and on."""
    scales: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Targets are minus this times the clean minimum."""
    mnist_scales: tuple[float, ...] = (0.1, 0.03)
    """The same for MNIST."""
    mnist_images: int = 10_000
    """First images of MNIST's training set, of which those of 1 and 7 are taken."""
    ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.02, 1.05, 1.1, 1.2, 1.4)
    """eps / tau, ascending; some below and some above 1."""
    steps: int = 300
    """Of L-BFGS on the points."""

    def __post_init__(self):
        jp.check.at_least(1, seeds=self.seeds, steps=self.steps, mnist_images=self.mnist_images)
        for field in ("scales", "mnist_scales", "ratios"):
            jp.check.positive(**{f"{field}[{i}]": x for i, x in enumerate(getattr(self, field))})
        if not self.scales or not min(self.ratios, default=1) < 1 < max(self.ratios, default=1):
            raise jp.InputError("scales needs one number at least, ratios some below and above 1")
        if pathlib.Path(self.name).name != self.name or self.name in ("", ".."):
            raise jp.InputError(f"name = {self.name!r}; a plain folder name is needed")

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: one set, the smallest target."""
        few = {"seeds": 1, "scales": (0.01,), "ratios": (0.6, 0.8, 0.9, 1.02), "steps": 60}
        return cls(**few | options)


def main(config: Config) -> dict[str, Any]:
    """Run it and return its record; a finished run is only read."""
    where = ("name", "runs", "overwrite", "data_dir")
    plan = {k: v for k, v in dataclasses.asdict(config).items() if k not in where}
    plan = {k: list(v) if isinstance(v, tuple) else v for k, v in plan.items()}
    plan |= {"mnist": config.data_dir is not None}
    work = Work(config.runs / NAME / config.name, plan, overwrite=config.overwrite)
    if done := work.read("result.json", {"curves": list, "retrained": list}):
        work.release()
        return done
    with jax.enable_x64(True):
        found = [_kept(work, config, f"gaussian-{k}", _gaussian, k) for k in range(config.seeds)]
        if config.data_dir is not None:
            found.append(_kept(work, config, "mnist", _mnist, config))
    result = {
        "experiment": NAME,
        "config": plan,
        "versions": record.versions(),
        "device": record.device(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": {part: round(spent, 3) for part, spent in work.seconds().items()},
        "curves": [curve for one in found for curve in one["curves"]],
        "retrained": [row for one in found for row in one["retrained"]],
    }
    draw(work.folder / "phase_transition.png", result)
    checkpoint.write_json(work.folder / "result.json", result)
    work.release()
    print("\n".join(markdown(result)))
    print(f"run folder: {work.folder}")
    return result


def _kept(work: Work, config: Config, name: str, make: Callable[..., "Game"], *parts: Any) -> Any:
    """What is known of one data set, from its file where an earlier process finished it."""
    file, fields = f"{name}.json", {"curves": list, "retrained": list}
    if (known := work.read(file, fields)) is None:
        began = time.perf_counter()
        game = make(*parts)
        known = _play(config, game, config.scales if name != "mnist" else config.mnist_scales)
        checkpoint.write_json(work.folder / file, known)
        work.note(name, time.perf_counter() - began)
    return known


@dataclasses.dataclass(frozen=True)
class Game:
    """A data set [N, 1, 1, D] or images of two classes, its test set, and the victim's lambda."""

    name: str
    seed: int
    split: jp.Split
    decay: float


def _gaussian(seed: int) -> Game:
    rng, sets = np.random.default_rng(seed), []
    for num in (1000, 5000):
        side = rng.choice([-1, 1], num)
        x = rng.normal(size=(num, 5)) + side[:, None] * np.array([1, 0.5, 0, 0, 0])
        sets.append(jp.Dataset(jnp.asarray(x[:, None, None, :]), jnp.asarray(side > 0, jnp.int32)))
    return Game("two Gaussians", seed, jp.Split(*sets), 0.0)


def _mnist(config: Config) -> Game:
    splits = f"train[:{config.mnist_images}]", "test"
    sets = (jp.data.load("mnist[7,1]", split, config.data_dir) for split in splits)
    wide = [jp.Dataset(jnp.asarray(x.image) / 255.0, jnp.asarray(x.label)) for x in sets]
    return Game("MNIST 1 against 7", 0, jp.Split(*wide), DECAY)


def _play(config: Config, game: Game, scales: tuple[float, ...]) -> dict[str, list]:
    """Curves and retrained victims of one data set."""
    train, test = game.split
    victim = _victim(train.image.shape[1:])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), victim.init(jax.random.key(0)))
    settings = ToConvergence(weight_decay=game.decay, tolerance=1e-8, max_steps=2000)
    num = len(train.label)
    clean, _ = converge(victim, zeros, train, settings, num_clean=num)
    whole = {"data": game.name, "seed": game.seed}
    facts = whole | {"clean_accuracy": float(accuracy(victim, clean, test))}
    curves, retrained = [], []
    for scale in scales:
        target = jax.tree.map(lambda x, scale=scale: -scale * x, clean)
        gradient = mean_gradient(victim, target, train)
        tau = theory.reach(target, gradient, 1.0, weight_decay=game.decay).tau
        shares = [ratio * tau for ratio in config.ratios]
        known = [theory.reach(target, gradient, s, weight_decay=game.decay) for s in shares]
        rows = jnp.concatenate([jnp.flatnonzero(train.label == k)[: POINTS // 2] for k in (0, 1)])
        scenario = jp.Scenario(train, train, rows.astype(jnp.int32), aux=target)
        settled = _residuals(victim, config.steps, game.decay, scenario, jnp.asarray(shares))
        residual = [float(x) for x in settled]
        facts |= {"scale": scale, "tau": tau}
        facts["target_accuracy"] = float(accuracy(victim, target, test))
        curves.append(
            facts
            | {
                "ratio": list(config.ratios),
                "residual": residual,
                "floor": [one.floor for one in known],
                "none": _norm(target, gradient, game.decay),
                "kink": _kink(config.ratios, residual),
            }
        )
        for ratio, share, one in zip(config.ratios, shares, known, strict=True):
            point = _closed_form(target, gradient, share, game.decay)
            added = jp.Dataset(point.reshape(1, *train.image.shape[1:]), jnp.ones(1, jnp.int32))
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), train, added)
            weights = jnp.ones(num + 1).at[num].set(share * num)
            after, solved = converge(
                victim, zeros, both, settings, num_clean=num, row_weights=weights
            )
            apart = jax.tree.map(lambda a, b: a - b, after.params, target.params)
            retrained.append(
                facts
                | {
                    "ratio": ratio,
                    "share": share,
                    "reachable": one.reachable,
                    "accuracy": float(accuracy(victim, after, test)),
                    "distance": float(jp.tree.norm(apart)),
                    "grad_norm": float(solved.grad_norm),
                    "point_norm": float(jnp.linalg.norm(point)),
                }
            )
    return {"curves": curves, "retrained": retrained}


@functools.cache
def _victim(shape: tuple[int, ...]) -> jp.Victim:
    return jp.models.logistic_regression(shape, 2, bias=False, dtype=jnp.float64)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _residuals(victim, steps, decay, scenario, shares):
    """||r|| after gradient canceling at each share: one program, points of that total weight."""

    def one(share):
        attack = jp.attacks.gradient_canceling(
            victim, weight=share, weight_decay=decay, optimizer="lbfgs", steps=steps
        )
        _, info = jp.run(attack, jax.random.key(0), scenario, num_steps=steps)
        return info.residual[-1]

    return lax.map(one, shares)


def _vector(params: Any) -> np.ndarray:
    """Column 1 minus column 0 of the kernel."""
    (kernel,) = jax.tree.leaves(params)
    return np.asarray(kernel[:, 1] - kernel[:, 0])


def _closed_form(target, gradient, share, decay):
    """The point for w; lambda / 2 of a vector is lambda of two columns."""
    w, slope = _vector(target.params), _vector(gradient) / 2
    slope = theory.effective_gradient(w, slope, share, weight_decay=decay / 2)
    return jnp.asarray(theory.single_point(w, slope, share))


def _norm(target, gradient, decay):
    """||r|| without any point."""
    return float(jp.tree.norm(jp.tree.axpy(decay, target.params, gradient)))


def _kink(ratios, residual) -> float:
    """The k of the best max(0, a (k - ratio)), by least squares."""
    x, y = np.asarray(ratios), np.asarray(residual)

    def error(k):
        hinge = np.maximum(0, k - x)
        return float(np.sum((y - hinge * (hinge @ y) / max(hinge @ hinge, 1e-300)) ** 2))

    grid = np.linspace(x[0] + 0.01, x[-1], 500)
    best = grid[int(np.argmin([error(k) for k in grid]))]
    step = grid[1] - grid[0]
    bounds = (max(best - step, x[0]), best + step)
    return float(minimize_scalar(error, bounds=bounds, method="bounded").x)


def markdown(result: dict[str, Any]) -> list[str]:
    """The table of a record: one row for each data set and target, mean and interval over seeds."""
    lines = [
        "| data | target | tau | kink at eps / tau | clean | nearest below tau | above tau |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys((one["data"], one["scale"]) for one in result["curves"])
    for data, scale in kinds:
        curves = [x for x in result["curves"] if (x["data"], x["scale"]) == (data, scale)]
        rows = [x for x in result["retrained"] if (x["data"], x["scale"]) == (data, scale)]
        below = max(x["ratio"] for x in rows if x["ratio"] < 1)
        above = min(x["ratio"] for x in rows if x["ratio"] >= 1)
        cells = [interval([x[field] for x in curves]) for field in ("tau", "kink")]
        cells.append(interval([x["clean_accuracy"] for x in curves]))
        for ratio in (below, above):
            cells.append(interval([x["accuracy"] for x in rows if x["ratio"] == ratio]))
        words = [_words(cell) for cell in cells]
        lines.append(f"| {data} | -{scale:g} w | {' | '.join(words[:3])} | {words[3]} (at "
                     f"{below:g}) | {words[4]} (at {above:g}) |")  # fmt: skip
    return lines


def _words(cell: Interval) -> str:
    """Three decimals, of small numbers four; both ends where there are any."""
    if cell.mean >= 0.1:
        return str(cell)
    ends = "" if cell.low is None else f" [{cell.low:.4f}, {cell.high:.4f}]"
    return f"{cell.mean:.4f}{ends}"


def draw(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Residuals and retrained accuracy over eps / tau, a column for each kind of data."""
    kinds = list(dict.fromkeys(one["data"] for one in result["curves"]))
    figure = figures.blank((4.6 * len(kinds), 6.0))
    axes = figure.subplots(2, len(kinds), squeeze=False, sharex=True)
    for column, data in enumerate(kinds):
        top, bottom = axes[0][column], axes[1][column]
        curves = [one for one in result["curves"] if one["data"] == data]
        scales = list(dict.fromkeys(one["scale"] for one in curves))
        for color, scale in zip(figures.COLORS, scales, strict=False):
            for curve in (one for one in curves if one["scale"] == scale):
                first = curve["seed"] == curves[0]["seed"]
                size = curve["none"]
                below = [x for x in zip(curve["ratio"], curve["floor"], strict=True) if x[0] < 1]
                line = np.array([*below, (1, 0), (max(curve["ratio"]), 0)])
                top.plot(line[:, 0], line[:, 1] / size, color=color, alpha=0.5, linewidth=1)
                label = f"-{scale:g} w, tau = {curve['tau']:.3g}" if first else None
                measured = np.array(curve["residual"]) / size
                top.plot(curve["ratio"], measured, "o", color=color, markersize=4, label=label)
            rows = [x for x in result["retrained"] if (x["data"], x["scale"]) == (data, scale)]
            for seed in dict.fromkeys(row["seed"] for row in rows):
                own = [row for row in rows if row["seed"] == seed]
                bottom.plot([row["ratio"] for row in own], [100 * row["accuracy"] for row in own],
                            "o-", color=color, markersize=3, linewidth=1)  # fmt: skip
        bottom.axhline(100 * curves[0]["clean_accuracy"], color="#777777", linewidth=1)
        bottom.annotate("clean", (1.0, 100 * curves[0]["clean_accuracy"]), fontsize=8,
                        xycoords=("axes fraction", "data"), ha="right", va="bottom")  # fmt: skip
        for axis in (top, bottom):
            axis.axvline(1, color="#777777", linewidth=1, linestyle=":")
        top.set_title(data, loc="left", fontsize=10)
        top.legend(fontsize=8, frameon=False)
        figures.dress(top, "", "residual / residual without points")
        top.set_ylim(-0.02, 1.02)
        figures.dress(bottom, "eps / tau", "test accuracy retrained, %")
    figures.save(figure, path)


if __name__ == "__main__":
    command_line(main, Config, __doc__)
