"""What an experiment on a pretrained extractor keeps between runs belongs to that extractor."""

import importlib

import chex
import jax
import pytest

import jaxpoison as jp
from jaxpoison.report import FeatureConfig
from jaxpoison.report.feature_study import ARMS
from jaxpoison.types import Dataset, Split
from jaxpoison.victims import Extractor

pytestmark = pytest.mark.usefixtures("quick_module")
SHAPE = (8, 8, 1)


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """The arms of a study of these methods, against an extractor of that seed."""
    study = importlib.import_module("jaxpoison.report.feature_study")
    monkeypatch.setattr(study, "added_job", lambda *args, arms, **options: arms)
    every = jp.data.synthetic.blobs(jax.random.key(0), 30, 3, SHAPE)
    split = Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(20), slice(20, None))))
    network = jp.models.mlp(SHAPE, 3, hidden=(4,), batch_norm=False)

    def make(seed, *methods):
        config = FeatureConfig.small(runs=tmp_path, decoder_epochs=1, methods=methods)
        extractor = Extractor(network, network.init(jax.random.key(seed)))
        return study.feature_study(
            "small", config, extractor=extractor, split=split, source={}, num_classes=3
        )

    return make


def test_every_arm_can_be_made(arms):
    names = tuple(name for name in ARMS if name != "decoder")  # which the next test makes
    made = arms(0, *names)
    assert tuple(made) == names and all(one.aux is None for one in made.values())
    inner = {name for name, one in made.items() if one.space == "features"}
    assert inner == {"features", "features-range", "tgda-features"}


def test_a_decoder_is_of_the_extractor_at_hand(arms, tmp_path):
    """A second run loads it; another extractor under the same name does not."""

    def decoder(seed):
        found = arms(seed, "decoder")["decoder"].aux
        return found, {p.name for p in (tmp_path / "pretrained").iterdir()}

    (first, one), (again, same), (other, two) = decoder(0), decoder(0), decoder(1)
    chex.assert_trees_all_equal(first, again)
    assert one == same and len(one) == 1 and len(two) == 2
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(first, other)
