"""What D-VAE takes out of real images whose labels only a poison tells.

Claim (Yu et al. 2024): the class-dependent part p^ that a rate-constrained VAE disentangles is the
poison, and what is reconstructed after it was subtracted twice does not show it any more.
The labels are random, so a linear probe reads nothing but the poison; no classifier is trained.
"cos" is the mean over classes of the cosine between the class means of p^ and of the true
perturbation, their global means removed; "residual" is ||p^ - delta||^2 / ||delta||^2, both of
stage one. Probes are ridge regressions fitted to one half and scored on the other, whose labels
D-VAE was fitted to: what it wrote in itself moves a probe away from chance, 1 / L, to either side.
Row "lsp_apart" is fitted, for as many steps, to the probe's own half alone.
Expected (reference run, 16x16, width 16, one seed): LSP cos 0.81, residual 0.86, final probe 0.172
from 0.988; gate: cos >= 0.7, residual <= 1, final probe <= 0.30, KLD within 15 % of its targets,
final PSNR >= 20 dB. OPS cos 0.97; gate: cos >= 0.9 and PSNR of stage one >= PSNR poisoned + 1.5 dB.
Data: first images of CIFAR-10's training set (prepared for TFDS, or cifar10-train.npz), each 2x2
block averaged to one pixel; budgets scale with the resolution.
Device: any; 15 minutes on 2 CPU cores.

    python -m experiments.cifar10_dvae_leak --data-dir DATA_DIR
"""

import dataclasses
import datetime
import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxpoison as jp
from jaxpoison import checkpoint
from jaxpoison.data import rounding
from jaxpoison.defenses.leak import leak_probe
from jaxpoison.report import command_line, record
from jaxpoison.report.work import Work
from jaxpoison.victims import similarity

NAME = "cifar10_dvae_leak"


class Row(NamedTuple):
    """One row of the table: N images, L random labels, B and E of each stage, what is demanded.

    `apart`: whether the probe's own half alone is fitted.
    """

    poison: str
    images: int
    classes: int
    batch: int
    epochs: int
    gate: dict[str, float]
    apart: bool = False


ROWS = {
    "lsp": Row("lsp", 8000, 10, 50, 20,
               {"cos": 0.7, "residual": 1.0, "final_probe": 0.30, "kld": 0.15, "final_psnr": 20}),
    "ops": Row("ops", 1500, 4, 25, 30, {"cos": 0.9, "gain": 1.5}),
    "lsp_apart": Row("lsp", 8000, 10, 50, 40, {}, apart=True),
}  # fmt: skip
NAMES = {"lsp": "LSP", "ops": "OPS", "lsp_apart": "LSP, half of the images fitted"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the leak table."""

    name: str = "default"
    """Run folder: RUNS/cifar10_dvae_leak/NAME."""
    runs: pathlib.Path = pathlib.Path("runs")
    """Where run folders are."""
    overwrite: bool = False
    """Remove an earlier run of this name and compute it again."""
    data_dir: pathlib.Path | None = None
    """Where CIFAR-10 is."""
    dataset: str = "cifar10"
    """Or another one of at least as many images; labels are not read."""
    rows: tuple[str, ...] = ("lsp", "ops", "lsp_apart")
    """Rows of the table, of these three."""
    width: int = 16
    """Of the network; the paper's is 64."""
    shrink: int = 2
    """Side of the blocks that become one pixel."""
    images: int | None = None
    """Instead of the rows' own number, for rehearsals; epochs likewise."""
    epochs: int | None = None
    """Of each stage."""
    seed: int = 0
    """Of labels, poison, fit and purification."""

    def __post_init__(self):
        jp.check.at_least(1, width=self.width, shrink=self.shrink)
        jp.check.at_least(0, seed=self.seed)
        for field in ("images", "epochs"):
            if (value := getattr(self, field)) is not None:
                jp.check.at_least(1, **{field: value})
        if not self.rows:
            raise jp.InputError("rows is empty; it must name one at least")
        for row in self.rows:
            jp.check.one_of(ROWS, rows=row)
        if pathlib.Path(self.name).name != self.name or self.name in ("", ".."):
            raise jp.InputError(f"name = {self.name!r}; a plain folder name is needed")

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds, on the embedded digits: shows that it runs, reaches no gate."""
        few = {"dataset": "digits", "shrink": 1, "width": 2, "rows": ("ops",), "images": 80,
               "epochs": 2}  # fmt: skip
        return cls(**few | options)


def main(config: Config) -> dict[str, Any]:
    """Run it and return its record; a finished run is only read."""
    where = ("name", "runs", "overwrite", "data_dir")
    plan = {k: v for k, v in dataclasses.asdict(config).items() if k not in where}
    plan = {k: list(v) if isinstance(v, tuple) else v for k, v in plan.items()}
    work = Work(config.runs / NAME / config.name, plan, overwrite=config.overwrite)
    if done := work.read("result.json", {"rows": list}):
        work.release()
        return done
    rows = [_row(work, config, name) for name in config.rows]
    result = {
        "experiment": NAME,
        "config": plan,
        "versions": record.versions(),
        "device": record.device(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": {part: round(spent, 3) for part, spent in work.seconds().items()},
        "rows": rows,
    }
    checkpoint.write_json(work.folder / "result.json", result)
    work.release()
    print("\n".join(markdown(result)))
    print(f"run folder: {work.folder}")
    return result


def _row(work: Work, config: Config, name: str) -> dict[str, Any]:
    """One poison: crafted, purified in both stages, probed before, between and after."""
    row = ROWS[name]
    num, epochs = config.images or row.images, config.epochs or row.epochs
    label_key, poison_key, fit_key, *keys = jax.random.split(jax.random.key(config.seed), 6)
    loaded = jp.data.load(config.dataset, f"train[:{num}]", config.data_dir)
    label = jax.random.randint(label_key, (len(loaded.label),), 0, row.classes)
    image = jp.data.shrunk(loaded, config.shrink).image
    clean = jp.Dataset(jnp.asarray(image), label)
    dirty = _poisoned(poison_key, clean, row)
    shape = tuple(clean.image.shape[1:])
    network = jp.models.dvae(shape, row.classes, width=config.width)
    settings = jp.defenses.DVAESettings(epochs=epochs, batch_size=row.batch)
    purifier = jp.defenses.dvae(network, settings)
    seen = len(label) // 2 if row.apart else len(label)
    fitted = jax.tree.map(lambda x: x[:seen], dirty)
    state, info, seconds = work.run(name, "fit", purifier, fit_key, fitted, purifier.num_steps)
    final = purifier.apply(keys[0], state, dirty).image
    made = functools.partial(jp.defenses.purified_images, network, state.other, dirty)
    between = made(key=jax.random.key(state.draw), output="x-p")  # as the fit drew
    rebuilt = made(key=keys[2], output="rec")
    first = jp.defenses.perturbations(network, state.other, dirty, key=keys[1])
    delta = (np.asarray(dirty.image, np.float64) - np.asarray(clean.image, np.float64)) / 255
    found = np.asarray(first, np.float64)

    def probe(image):
        return leak_probe(image, label, num_classes=row.classes)

    def psnr(image):
        return similarity(clean.image, jnp.asarray(image)).psnr

    last = probe(final)
    steps = seen // min(row.batch, seen) * epochs
    measured = {
        "name": name,
        "images": len(label),
        "fitted": seen,
        "classes": row.classes,
        "batch": row.batch,
        "epochs": epochs,
        "steps_per_stage": steps,
        "cos": _cosine(found, delta, np.asarray(label), row.classes),
        "residual": float(np.sum((found - delta) ** 2) / np.sum(delta**2)),
        "probe_poisoned": probe(dirty.image).accuracy,
        "probe_stage_1": probe(between).accuracy,
        "probe_rebuilt": probe(rebuilt).accuracy,
        "probe_final": last.accuracy,
        "gap_final": last.gap,
        "psnr_poisoned": psnr(dirty.image),
        "psnr_stage_1": psnr(between),
        "psnr_final": psnr(final),
        "kld": [float(info.kld[epochs - 1]), float(info.kld[-1])],
        "magnitude": float(info.magnitude[epochs - 1]),
        "seconds": round(seconds.steps, 1),
    }
    measured["met"] = judged(measured, row.gate, settings.kld_targets)
    return measured


def judged(row: dict[str, Any], gate: dict[str, float], targets: tuple[float, ...]) -> dict:
    """Which demands of the gate a row meets."""
    off = max(abs(a / b - 1) for a, b in zip(row["kld"], targets, strict=True))
    gain = row["psnr_stage_1"] - row["psnr_poisoned"]
    met = {
        "cos": lambda limit: row["cos"] >= limit,
        "residual": lambda limit: row["residual"] <= limit,
        "final_probe": lambda limit: row["probe_final"] <= limit,
        "kld": lambda limit: off <= limit,
        "final_psnr": lambda limit: row["psnr_final"] >= limit,
        "gain": lambda limit: gain >= limit,
    }
    return {name: bool(met[name](limit)) for name, limit in gate.items()}


def _poisoned(key: Any, clean: jp.Dataset, row: Row) -> jp.Dataset:
    """LSP at 6/255 per pixel on average (L2 1.304 at 32x32x3) in 4 x 4 cells, or one pixel."""
    shape = clean.image.shape[1:]
    budget = {"norm": "l2", "eps": math.sqrt(math.prod(shape)) * 6 / 255}
    if row.poison == "lsp":
        attack = jp.attacks.lsp(
            eps=budget["eps"], num_classes=row.classes, patch=max(1, shape[0] // 4)
        )
    else:
        attack, budget = jp.attacks.one_pixel(num_classes=row.classes), {"norm": "l0", "eps": 1}
    rows = jnp.arange(len(clean.label), dtype=jnp.int32)
    scenario = jp.Scenario(clean, clean, rows)
    dirty = attack.poison(attack.init(key, scenario), scenario)
    image = rounding.to_uint8(dirty.image, clean.image, **budget)
    return jp.Dataset(jnp.asarray(image), clean.label)


def _cosine(found: np.ndarray, delta: np.ndarray, label: np.ndarray, classes: int) -> float:
    """Mean over classes of the cosine of class means, global means removed."""
    values = []
    for own in range(classes):
        a, b = (x[label == own].mean(axis=0) - x.mean(axis=0) for x in (found, delta))
        values.append(np.sum(a * b) / math.sqrt(np.sum(a**2) * np.sum(b**2)))
    return float(np.mean(values))


def markdown(result: dict[str, Any]) -> list[str]:
    """The table of a record."""
    lines = [
        "| poison | images, classes | steps a stage | cos | residual | probe: poisoned | stage 1 | "
        "x^ of stage 1 | final | distance from chance | PSNR: poisoned / stage 1 / final, dB | "
        "KLD | gate |",
        f"|{'---|' * 13}",
    ]
    for row in result["rows"]:
        probes = [row[f"probe_{k}"] for k in ("poisoned", "stage_1", "rebuilt", "final")]
        psnr = " / ".join(f"{row[f'psnr_{k}']:.1f}" for k in ("poisoned", "stage_1", "final"))
        missed = [name for name, met in row["met"].items() if not met]
        cells = [
            NAMES[row["name"]],
            f"{row['images']:,}, {row['classes']}",
            f"{row['steps_per_stage']:,}",
            f"{row['cos']:.2f}",
            f"{row['residual']:.2f}",
            *(f"{x:.3f}" for x in (*probes, row["gap_final"])),
            psnr,
            " / ".join(f"{x:.2f}" for x in row["kld"]),
            (f"missed: {', '.join(missed)}" if missed else "met") if row["met"] else "none set",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    command_line(main, Config, __doc__)
