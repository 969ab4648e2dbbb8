"""What the record of an added arm says of the attack's steps."""

from typing import NamedTuple

import numpy as np

from jaxpoison.report.added_cells import progress


class Info(NamedTuple):
    outer_loss: np.ndarray
    residual: np.ndarray
    iterations: np.ndarray


def test_linear_solves_are_no_residual_of_canceling():
    info = Info(-np.arange(1.0, 301), np.linspace(0.5, 0.1, 300), np.full(300, 16))
    found = progress(info, cancels=False)
    assert found["outer_loss"] == {"first": -1.0, "last": -300.0} and "residual" not in found
    solve = found["solve"]
    assert solve["iterations"] == 16
    assert (solve["residual"]["first"], solve["residual"]["last"]) == (0.5, 0.1)
    assert len(solve["residual"]["curve"]) == len(solve["residual"]["steps"]) <= 101
    assert progress(info._replace(outer_loss=np.zeros(1)), cancels=False) == {}
