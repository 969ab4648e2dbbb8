"""Parameter corruption on MNIST: its smoke run, its committed record, the table made of that."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import mnist_parameter_corruption as script
from experiments.tables import PAGES, RESULTS
from jaxpoison.data import synthetic


def check(record):
    """Every kind at every radius for every seed, inside its ball, the loss higher than before."""
    assert record["experiment"] == script.NAME
    assert {"versions", "device", "date", "seconds"} <= set(record)
    config, wanted = record["config"], set()
    for network in config["networks"]:
        kinds = script.KINDS if network == "cnn" and config["dropout"] else script.KINDS[:2]
        radii = config["cnn_radii" if network == "cnn" else "radii"]
        for seed in range(config["seeds"]):
            wanted.add((network, seed, "clean", 0.0))
            wanted |= {(network, seed, kind, radius) for kind in kinds for radius in radii}
    found = {tuple(one[k] for k in ("network", "seed", "kind", "radius")): one
             for one in record["cells"]}  # fmt: skip
    assert set(found) == wanted and len(record["cells"]) == len(wanted)
    for (network, seed, kind, radius), one in found.items():
        assert one["length"] == pytest.approx(radius, rel=1e-3)
        if kind in script.KINDS[1:]:
            before = found[network, seed, "clean", 0.0]
            assert one["loss"] > before["loss"]
            assert one["loss"] > found[network, seed, "random", radius]["loss"]
    for number in record["published"]:
        assert number["source"].startswith("third-party") and 0 < number["value"] < 1


def test_smoke(tmp_path, quick_compile):
    for seed, (split, num) in enumerate({"train": 140, "test": 60}.items()):
        image, label = synthetic.blobs(jax.random.key(seed), num, 10, (28, 28, 1))
        np.savez(tmp_path / f"mnist-{split}.npz", image=image, label=label)
    config = script.Config.smoke(runs=tmp_path, data_dir=tmp_path)
    record = script.main(config)
    check(record)
    run = tmp_path / script.NAME / "default"
    assert script.main(config) == record == json.loads((run / "result.json").read_text())
    with pytest.raises(ValueError, match="images = 141; the training set has 140"):
        script.main(dataclasses.replace(config, name="more", images=141))


def test_the_committed_record_and_its_table():
    record = json.loads((RESULTS / f"{script.NAME}.json").read_text())
    settings = json.loads(
        json.dumps(dataclasses.asdict(script.Config(data_dir=RESULTS)), default=str)
    )
    assert record["config"] == {name: settings[name] for name in record["config"]} | {"seeds": 1}
    check(record)
    for kind in script.KINDS[1:]:
        (drop,) = script.drops(record, "cnn", kind, 0.5)
        assert 0.20 < drop < 0.35
    (clean,) = (one["accuracy"] for one in record["cells"]
                if (one["network"], one["kind"]) == ("cnn", "clean"))  # fmt: skip
    assert clean == pytest.approx(0.985, abs=0.005)
    for one in record["cells"]:
        if one["kind"] == "random":
            (lost,) = script.drops(record, one["network"], "random", one["radius"])
            assert abs(lost) < 0.005
    text = PAGES[1].read_text()
    assert f"python -m experiments.{script.NAME}" in text
    assert "\n".join(script.markdown(record)) in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"images": 63}, "images = 63"),
        ({"radii": (0.0,)}, "radii"),
        ({"networks": ("vgg",)}, "vgg"),
        ({"cnn_radii": ()}, "at least one"),
        ({"name": ".."}, "plain"),
    ],
)
def test_bad_settings(options, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        script.Config(data_dir=tmp_path, **options)
