"""The configurations behind the tables and figures of Witches' Brew (Geiping et al. 2021).

From the run scripts of its released code; the tables' own values were not at hand. All of them are
for CIFAR-10, 1 % of the training images and the ten keys of `data.setups.PAPER_KEYS`, those of the
benchmark for its 100 setups.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxpoison import check
from jaxpoison.attacks.crafting import Crafting
from jaxpoison.data import augment
from jaxpoison.types import Attack, Victim
from jaxpoison.victims.recipes import NORMALIZATION

__all__ = ["BREWS", "Brew"]


@dataclasses.dataclass(frozen=True)
class Brew:
    """How an item of the paper was run.

    Attributes:
      source: which item.
      networks: of the surrogates, names of `models.create`, in turn.
      ensemble: K surrogates.
      eps: pixel units.
      restarts: R.
      steps: M.
      tau: first rate, in units of the data set's standard deviation.
      batch_size: of the poisons.
      augment: whether the poisons are augmented while crafting.
      augment_victims: whether victims and surrogates augment their training.
      victims: networks per setup; of an ensemble, its size times the validation runs.
      options: keywords of the attack.
    """

    source: str
    networks: tuple[str, ...] = ("resnet18",)
    ensemble: int = 1
    eps: float = 16 / 255
    restarts: int = 8
    steps: int = 250
    tau: float = 0.1
    batch_size: int = 512
    augment: bool = True
    augment_victims: bool = True
    victims: int = 8
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def crafting(self, data: str = "cifar10", **changes: Any) -> Crafting:
        """The outer loop, with the units and the padding of a data set.

        Args:
          data: a key of `victims.recipes.NORMALIZATION`.
          **changes: other fields of `Crafting`.

        Raises: InputError for another data set, or a field that cannot have this value.
        """
        check.one_of(NORMALIZATION, data=data)
        mean, std = NORMALIZATION[data]
        moved = augment.shift_flip(fill=mean) if self.augment else None
        own = Crafting(
            steps=self.steps,
            tau=self.tau,
            std=std,
            batch_size=self.batch_size,
            ensemble=self.ensemble,
            augment=moved,
        )
        return dataclasses.replace(own, **changes)

    def build(
        self,
        create: Callable[[str], Victim],
        attack: Callable[..., Attack],
        *,
        data: str = "cifar10",
        **changes: Any,
    ) -> Attack:
        """The attack of one restart; repeat it with `over_restarts(..., restarts)`.

        Args:
          create: name of a network -> the network.
          attack: (network or networks, eps=, crafting=) -> Attack: `gradient_matching`; or another
            method at the settings of this item, if it has no `options`.
          data: as in `crafting`, like the changes.
          **changes: other fields of `Crafting`.

        Raises: InputError as `crafting` and the attack.
        """
        networks = tuple(create(name) for name in self.networks)
        victim = networks[0] if len(networks) == 1 else networks
        crafting = self.crafting(data, **changes)
        return attack(victim, eps=self.eps, crafting=crafting, **self.options)


MAIN = Brew("section 5.1 and table 1 (d)")
_margin, _squared = {"target_loss": "margin"}, {"loss": "SE"}
_vary = functools.partial(dataclasses.replace, MAIN)

BREWS: Mapping[str, Brew] = check.presets(
    "BREWS",
    {
        "main": MAIN,
        "table1-a": _vary(source="table 1 (a)", augment=False, augment_victims=False),
        "table1-b": _vary(source="table 1 (b)", augment=False),
        "table1-c": _vary(source="table 1 (c)", augment=False, ensemble=8),
        **{
            f"ensemble{k}-restarts{r}": _vary(source="inset of section 5.1", ensemble=k, restarts=r)
            for k in (1, 2, 4, 8)
            for r in (1, 8)
        },
        "table2-convnet": _vary(source="table 2, ConvNet64", networks=("convnet",), eps=32 / 255),
        "table2-resnet": _vary(source="table 2, ResNet18"),
        "benchmark-base": _vary(source="benchmark table, base", eps=8 / 255, victims=1),
        "benchmark-ens4": _vary(source="benchmark table, ens4", eps=8 / 255, ensemble=4, victims=1),
        "benchmark-het": _vary(
            source="benchmark table, het",
            networks=("resnet18", "vgg11", "mobilenet_v2"),
            ensemble=6,
            eps=8 / 255,
            tau=0.5,
            batch_size=128,
            victims=1,
        ),
        "supplementary-steps50": _vary(source="supplementary table 5, M = 50", steps=50),
        "supplementary-margin": _vary(source="supplementary table 5, margin", options=_margin),
        "supplementary-squared": _vary(source="supplementary table 5, SE", options=_squared),
    },
)
"""By item of the paper; gradient matching. Table 2's other methods run at the settings of its two
rows, `mean_feature_collision` (its Poison Frogs) with batch_size=128. With ensembles of 1, 2, 4 and
8 the paper validates 8, 4, 2 and 1 times: always 8 networks."""
