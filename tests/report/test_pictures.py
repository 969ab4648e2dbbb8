import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from matplotlib import image as pictures

from jaxpoison.report import added_figures, figures

RNG = np.random.RandomState(0)


@pytest.fixture
def kept(monkeypatch):
    """Figures as they are before they become pixels."""
    figures_kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: figures_kept.append(figure))
    return figures_kept


def images(num, channels, largest):
    clean = RNG.randint(50, 200, (num, 6, 5, channels)).astype(np.uint8)
    change = RNG.randint(-largest, largest + 1, clean.shape)
    change[0, 0, 0] = largest
    return clean, (clean + change).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_draws_clean_poisoned_and_difference(kept, tmp_path, channels):
    clean, poisoned = images(10, channels, 8)
    figures.grid(tmp_path / "g.png", clean, {"noise": poisoned, "nothing": clean}, columns=4)
    axes = np.reshape(kept[0].axes, (5, 4))
    labels = [line[0].get_ylabel() for line in axes]
    assert labels == [
        "clean", "noise", "difference\nx 15.9, grey = 0", "nothing",
        "difference\nx 127, grey = 0",
    ]  # fmt: skip
    change = poisoned.astype(float) - clean
    rows = [clean / 255, poisoned / 255, 0.5 + change / 16, clean / 255, 0.5 + 0 * change]
    for line, row in zip(axes, rows, strict=True):
        for axis, picture in zip(line, row[:4], strict=True):
            shown = axis.images[0].get_array()
            assert shown.shape == ((6, 5) if channels == 1 else (6, 5, 3))
            np.testing.assert_allclose(shown, np.squeeze(picture), atol=1e-12)
            assert axis.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(("num", "channels"), [(1, 1), (3, 3), (9, 1)])
def test_grid_writes_a_png_with_a_white_border(tmp_path, num, channels):
    clean, poisoned = images(num, channels, 8)
    name = "an-attack-with-a-rather-long-name"
    figures.grid(tmp_path / "g.png", clean, {name: poisoned})
    picture = pictures.imread(tmp_path / "g.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 100 * min(num, 8)
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        np.testing.assert_array_equal(edge, 1)  # no text is cut off
    assert [p.name for p in tmp_path.iterdir()] == ["g.png"]


def record(**curves):
    arms = {
        k.replace("_", "-"): {"curve": v, "final_accuracy": {"values": [0.5, 0.6]}}
        for k, v in curves.items()
    }
    return {"experiment": "small", "arms": arms}


def test_curves_name_their_lines(kept, tmp_path):
    figures.curves(tmp_path / "c.png", record(clean=[0.5, 0.98], random_noise=[0.4, 0.97]))
    (axis,) = kept[0].axes
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[1, 50], [2, 98]])
    np.testing.assert_allclose(axis.lines[1].get_xydata(), [[1, 40], [2, 97]])
    texts = {t.get_text(): t for t in axis.texts}
    assert set(texts) == {"clean 98.0", "random-noise 97.0"}
    assert texts["clean 98.0"].get_color() == axis.lines[0].get_color()
    assert axis.get_title(loc="left") == "small: mean of 2 victims"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "clean test accuracy, %")


def test_curves_of_several_victims_have_panels(kept, tmp_path):
    value = record(clean=[0.5, 0.9])
    arms = {
        f"{net}/{name}": value["arms"]["clean"] | {"victim": net, "curve": [0.1 * i, 0.2]}
        for i, net in enumerate(["resnet18", "vgg11", "vit", "mlp"])
        for name in ("clean", "tap")
    }
    arms["forest/clean"] = value["arms"]["clean"] | {"victim": "forest", "curve": []}
    figures.curves(tmp_path / "c.png", value | {"arms": arms})
    axes = kept[0].axes
    assert [a.get_title(loc="left") for a in axes] == ["resnet18", "vgg11", "vit", "mlp"]
    assert {t.get_text() for t in axes[2].texts} == {"clean 20.0", "tap 20.0"}
    np.testing.assert_allclose(axes[3].lines[0].get_xydata(), [[1, 30], [2, 20]])
    assert kept[0].get_suptitle() == "small: mean of 2 victims"


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_write_a_png_with_a_white_border(tmp_path, epochs):
    arms = {f"arm_number_{i}": [0.1 * i] * epochs for i in range(10)}
    figures.curves(tmp_path / "c.png", record(**arms))
    picture = pictures.imread(tmp_path / "c.png")
    assert picture.shape[0] > 500 and picture.shape[1] > 900
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        np.testing.assert_array_equal(edge, 1)
    if epochs == 1:  # one epoch is a dot, not an invisible line
        blue = np.array([0x2A, 0x78, 0xD6]) / 255
        assert (np.abs(picture[..., :3] - blue).max(axis=2) < 0.01).sum() > 50


@hypothesis.given(st.lists(st.floats(0, 100), min_size=1, max_size=18))
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
def test_labels_keep_apart(values):
    ends = [(value, f"{i}", "red") for i, value in enumerate(values)]
    heights = figures._apart(ends)
    assert len(heights) == len(values)
    assert all(b - a >= 5 - 1e-9 for a, b in zip(heights, heights[1:], strict=False))
    assert heights[-1] <= 102 and heights[0] >= 0
    if len(values) == 1:
        assert heights == [min(max(values[0], 1), 101)]


def test_residuals_say_where_inversion_begins(monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(added_figures, "save", lambda figure, path: kept.append(figure))
    curve = {"first": 2.0, "last": 1.0, "steps": [1, 30, 40], "curve": [2.0, 0.1, 1.0]}
    cell = {"share": 0.1, "num_added": 3, "residual": curve}
    cells = {
        "canceling": cell | {"player": "a"},
        "matching": cell | {"player": "b", "feature_error": curve},
        "decoder": cell | {"player": "b", "feature_error": curve},
    }
    attacks = {"canceling": {}, "matching": {"cancel_steps": 30}, "decoder": {"cancel_steps": 30}}
    arms = {name: {"added": one | {"arm": name}} for name, one in cells.items()}
    record = {"experiment": "e", "arms": arms, "config": {"attacks": attacks}}
    added_figures.residuals(tmp_path / "r.png", record)
    found = []
    for axis in kept[0].axes:
        lines = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
        found.append(lines.pop("inversion begins", None))
        assert all(line == [1, 30, 40] for line in lines.values())
    assert found == [None, [30, 30]]
