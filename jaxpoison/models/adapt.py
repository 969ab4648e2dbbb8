"""From a flax.linen module to a `Victim`, `Generator` or `Decoder`: nothing is held."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn
from flax.core import unfreeze
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.types import (
    Decoder,
    Disentangler,
    Generator,
    InputError,
    Key,
    Variables,
    Victim,
)

__all__ = [
    "adapt",
    "adapt_decoder",
    "adapt_generator",
    "check_image_shape",
    "num_params",
    "standardize",
]

PyTree = Any


def adapt(
    module: nn.Module,
    image_shape: Sequence[int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """The pure functions of a linen network: z = f((x - mean) / std; params, stats).

    Attacks live in pixel space [0, 1]; what the network wants instead is `mean` and `std`.

    Args:
      module: its `__call__(self, x, *, train: bool)`, or `(self, x, *, deterministic: bool)` in
        flax's own words, returns logits [B, L]. It may use BatchNorm (collection `batch_stats`)
        and dropout (stream `dropout`), and gives `self.sow("intermediates", "features", h)`
        before its last layer if features are wanted.
      image_shape: (H, W, C).
      mean: per channel, pixel units; None for zeros.
      std: per channel, pixel units; None for ones.

    Returns: a Victim, with `embed`. Logits and features are float32 (float64 where the module
      computes in it); statistics keep their dtype. Nothing is captured but the module's settings.
    Errors: InputError for a module without either of the two, a bad shape, mean or std; when
      called, for images of another shape or integer pixels, for missing features, for a missing
      dropout key.
    """
    net = _pure(module, check_image_shape(image_shape), mean, std)

    def apply(
        variables: Variables, image: Array, *, train: bool, key: Key | None = None
    ) -> tuple[Float[Array, "b l"], PyTree]:
        logits, stats = net.apply(variables, image, train=train, key=key)
        return _logits(net.name, logits), stats

    def embed(
        variables: Variables, image: Array, *, train: bool, key: Key | None = None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b l"], PyTree]:
        mutable = ["intermediates", "batch_stats"] if train else ["intermediates"]
        key = key if train else None
        logits, new = net.run(variables, image, train=train, key=key, mutable=mutable)
        sown = new.get("intermediates", {}).get("features")
        if sown is None:
            raise InputError(
                f'{net.name} gives no features: call self.sow("intermediates", "features", h) '
                "before its last layer"
            )
        found = _wide(sown[0]).reshape(image.shape[0], -1)
        return (
            found,
            _logits(net.name, logits),
            _moved(new, variables) if train else variables.stats,
        )

    def features(variables: Variables, image: Array) -> Float[Array, "b d"]:
        return embed(variables, image, train=False)[0]

    return Victim(net.init, apply, features, embed)


def adapt_generator(
    module: nn.Module,
    image_shape: Sequence[int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Generator:
    """The pure functions of a linen network that perturbs: g((x - mean) / std; params, stats).

    Args:
      module: called as in `adapt`; it returns a direction in the shape of the images with every
        entry in [-1, 1]. End it with `jnp.tanh`: nothing behind it bounds the perturbation. It may
        use BatchNorm; it may not draw random numbers.
      image_shape: (H, W, C).
      mean: per channel, pixel units; None for zeros.
      std: per channel, pixel units; None for ones.

    Returns: a Generator named "", without options; directions are float32 (float64 where the module
      computes in it). Nothing is captured but the module's settings.
    Errors: InputError as `adapt`; when called, for a direction of another shape than the images.
    """
    shape = check_image_shape(image_shape)
    net = _pure(module, shape, mean, std, unkeyed="a generator must not")

    def apply(
        variables: Variables, image: Array, *, train: bool
    ) -> tuple[Float[Array, "b h w c"], PyTree]:
        direction, stats = net.apply(variables, image, train=train, key=None)
        if direction.shape != image.shape:
            raise InputError(
                f"{net.name} returns {direction.shape} for images {image.shape}: a generator's "
                "direction has the shape of its images"
            )
        return _wide(direction), stats

    return Generator(net.init, apply, image_shape=shape)


def adapt_decoder(module: nn.Module, features: int, image_shape: Sequence[int]) -> Decoder:
    """The pure functions of a linen network from features to images: x = d(phi; params, stats).

    Args:
      module: called as in `adapt`, on features [B, D]; it returns images. End it with `nn.sigmoid`:
        nothing behind it keeps pixels in [0, 1]. It may use BatchNorm; it may not draw random
        numbers.
      features: D.
      image_shape: (H, W, C).

    Returns: a Decoder; images are float32 (float64 where the module computes in it). Nothing is
      captured but the module's settings.
    Errors: InputError as `adapt`, and for D < 1; when called, for features of another number, and
      for images of another shape.
    """
    check.at_least(1, features=features)
    shape = check_image_shape(image_shape)
    net = _pure(module, (int(features),), None, None, "a decoder must not", takes="features")

    def apply(
        variables: Variables, features: Array, *, train: bool
    ) -> tuple[Float[Array, "b h w c"], PyTree]:
        image, stats = net.apply(variables, features, train=train, key=None)
        if image.shape[1:] != shape:
            raise InputError(f"{net.name} returns {image.shape}; its images are (batch, *{shape})")
        return _wide(image), stats

    return Decoder(net.init, apply)


class _Pure(NamedTuple):
    """What every adapted network has: `apply` gives (output, new stats), `run` as flax returns."""

    name: str
    shape: tuple[int, ...]
    init: Callable[..., Variables]
    apply: Callable[..., tuple[Array, PyTree]]
    run: Callable[..., Any]


def _pure(
    module: nn.Module,
    shape: tuple[int, ...],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    unkeyed: str = "pass key=",
    takes: str = "images",
) -> _Pure:
    """`unkeyed`: what to say to a network that draws in train mode and has no key."""
    name = type(module).__name__
    mode = _mode(module)
    mean, std = _check_channels("mean", mean, shape[-1]), _check_channels("std", std, shape[-1])
    if std is not None and min(std) <= 0:
        raise InputError(f"std = {std}; every entry must be above 0")

    def init(key: Key) -> Variables:
        keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        collections = unfreeze(module.lazy_init(keys, image, **mode(False)))
        others = set(collections) - {"params", "batch_stats", "intermediates"}
        if others:
            raise InputError(f"{name} has collections {sorted(others)}: only batch_stats is known")
        return Variables(collections.get("params", {}), collections.get("batch_stats", {}))

    def run(variables: Variables, image: Array, *, train: bool, key: Any, mutable: Any) -> Any:
        if image.shape[1:] != shape:
            raise InputError(f"{takes} are {image.shape}, the network takes (batch, *{shape})")
        if not jnp.issubdtype(image.dtype, jnp.floating):
            hint = "in [0, 1] (types.as_float)" if takes == "images" else ""
            raise InputError(f"{takes} are {image.dtype}: pass floats {hint}".rstrip())
        collections = {"params": variables.params, "batch_stats": variables.stats}
        rngs = None if key is None else {"dropout": key}
        x = standardize(image, mean, std)
        try:
            return module.apply(collections, x, **mode(train), rngs=rngs, mutable=mutable)
        except errors.InvalidRngError as error:
            hint = f"in train mode: {unkeyed}" if train else "in eval mode: it must not"
            raise InputError(f"{name} draws random numbers {hint}") from error

    def apply(
        variables: Variables, image: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        if not train:
            output = run(variables, image, train=False, key=None, mutable=False)
            return output, variables.stats
        output, new = run(variables, image, train=True, key=key, mutable=["batch_stats"])
        return output, _moved(new, variables)

    return _Pure(name, shape, init, apply, run)


def standardize(
    image: Float[Array, "b *d"], mean: Sequence[float] | None, std: Sequence[float] | None
) -> Float[Array, "b *d"]:
    """(x - mean) / std per channel, in the dtype of x; None leaves that part out."""
    if mean is not None:
        image = image - jnp.asarray(mean, image.dtype).reshape(1, 1, 1, -1)
    if std is not None:
        image = image / jnp.asarray(std, image.dtype).reshape(1, 1, 1, -1)
    return image


def num_params(network: Victim | Generator | Decoder | Disentangler) -> int:
    """How many trainable numbers a network has; nothing is computed."""
    params = jax.eval_shape(network.init, jax.random.key(0)).params
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def check_image_shape(
    image_shape: Sequence[int], *, at_least: int = 1, divisor: int = 1, name: str = "the network"
) -> tuple[int, int, int]:
    """(H, W, C) as ints, H and W at least `at_least` and multiples of `divisor`, for `name`.

    Errors: InputError otherwise.
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise InputError(
            f"image_shape = {shape}; it must be (height, width, channels), each at least 1"
        )
    if min(shape[:2]) < at_least:
        raise InputError(
            f"image_shape = {shape}; height and width must be at least {at_least} for {name}"
        )
    if any(n % divisor for n in shape[:2]):
        raise InputError(
            f"image_shape = {shape}; height and width must be multiples of {divisor} for {name}"
        )
    return (int(shape[0]), int(shape[1]), int(shape[2]))


def _mode(module: nn.Module) -> Callable[[bool], dict[str, Any]]:
    """How the module is told that it trains: `train`, or flax's `deterministic`, its opposite."""
    known = inspect.signature(module.__call__).parameters
    if "train" in known:
        return lambda train: {"train": train}
    if "deterministic" in known:
        return lambda train: {"deterministic": not train}
    raise InputError(
        f"{type(module).__name__}.__call__ must take train: bool (or deterministic: bool), as in "
        f"(self, x, *, train), also where it has no use for it; it takes {', '.join(known)}"
    )


def _check_channels(
    name: str, values: Sequence[float] | None, channels: int
) -> tuple[float, ...] | None:
    if values is None:
        return None
    values = tuple(float(v) for v in values)
    if len(values) != channels or not all(map(math.isfinite, values)):
        raise InputError(
            f"{name} = {values}; it must be {channels} finite numbers, one per channel"
        )
    return values


def _logits(name: str, logits: Array) -> Float[Array, "b l"]:
    if logits.ndim != 2:
        raise InputError(f"{name} returns {logits.shape}: logits must be (batch, classes)")
    return _wide(logits)


def _moved(new: Any, variables: Variables) -> PyTree:
    """The running statistics after a pass in train mode, each in its dtype."""
    stats = unfreeze(new).get("batch_stats", {})
    return jax.tree.map(lambda s, old: s.astype(old.dtype), stats, variables.stats)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
