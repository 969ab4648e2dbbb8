"""The two-layer tanh net of `oracles.smooth_victim` once more, in numpy and in closed form."""

import numpy as np


def forward(w, v, x):
    """(logits, hidden) of images [B, H, W, C]."""
    hidden = np.tanh(x.reshape(len(x), -1) @ w)
    return hidden @ v, hidden


def losses_and_gradients(w, v, x, y):
    """CE of each row, and d CE_i / d (x_i, w, v) summed over rows for w and v."""
    logits, hidden = forward(w, v, x)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(p[rows, y])
    at_logits = p.copy()
    at_logits[rows, y] -= 1
    at_hidden = (at_logits @ v.T) * (1 - hidden**2)
    flat = x.reshape(len(x), -1)
    return loss, (at_hidden @ w.T).reshape(x.shape), flat.T @ at_hidden, hidden.T @ at_logits
