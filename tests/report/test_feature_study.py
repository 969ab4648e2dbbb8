"""What an experiment on a pretrained extractor keeps between runs belongs to that extractor."""

import importlib

import chex
import jax
import pytest

import jaxpoison as jp
from jaxpoison.report import FeatureConfig
from jaxpoison.types import Dataset, Split
from jaxpoison.victims import Extractor

pytestmark = pytest.mark.usefixtures("quick_module")
SHAPE = (8, 8, 1)


def test_a_decoder_is_of_the_extractor_at_hand(tmp_path, monkeypatch):
    """A second run loads it; another extractor under the same name does not."""
    study = importlib.import_module("jaxpoison.report.feature_study")
    monkeypatch.setattr(study, "added_job", lambda *args, arms, **options: arms["decoder"].aux)
    every = jp.data.synthetic.blobs(jax.random.key(0), 30, 3, SHAPE)
    split = Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(20), slice(20, None))))
    network = jp.models.mlp(SHAPE, 3, hidden=(4,), batch_norm=False)
    config = FeatureConfig.small(runs=tmp_path, decoder_epochs=1, methods=("decoder",))

    def decoder(seed):
        extractor = Extractor(network, network.init(jax.random.key(seed)))
        found = study.feature_study(
            "small", config, extractor=extractor, split=split, source={}, num_classes=3
        )
        return found, {p.name for p in (tmp_path / "pretrained").iterdir()}

    (first, one), (again, same), (other, two) = decoder(0), decoder(0), decoder(1)
    chex.assert_trees_all_equal(first, again)
    assert one == same and len(one) == 1 and len(two) == 2
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(first, other)
