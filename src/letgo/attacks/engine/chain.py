"""A chain of attacks: each link is made on the model that the link before it left, and the last one is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from letgo.attacks.displacement import weight_change
from letgo.attacks.engine.base import Attacked, Probe, Victim

Link = Callable[[Victim], Attacked]


@dataclass
class Left:
    """What a link leaves for the one after it. It is made of a saved model when that is first loaded; everybody gets a
    copy of his own.

    Attributes:
        label: the link as it is written.
        earlier: what the links before it leave.
        probe: looks at the model that is left.
        made: of each saved model, what the link did to it, without the model.
    """

    label: str
    link: Link
    earlier: Left | None
    probe: Probe | None
    made: dict[tuple[str, str], Attacked] = field(default_factory=dict)
    _of: tuple[str, str] | None = None
    _model: Any = None

    def __call__(self, victim: Victim) -> Any:
        of = _key(victim)
        if of != self._of:
            self._make(victim, of)
        model = copy.deepcopy(self._model)
        for parameter in model.parameters():
            # A link may have frozen some (adapters); whoever loads a saved model finds none frozen.
            parameter.requires_grad_(parameter.is_floating_point())
        return model.eval()

    def _make(self, victim: Victim, of: tuple[str, str]) -> None:
        self._of = self._model = None
        attacked = self.link(replace(victim, earlier=self.earlier, later=True))
        seen = frozenset().union(*(each.seen for _, each in self.done(victim)), attacked.seen)
        look = {} if self.probe is None else self.probe(attacked.model, seen)
        self.made[of] = replace(attacked, model=None, curve=[look], layers=())
        self._of, self._model = of, attacked.model
        if self.earlier is not None:
            self.earlier.forget()

    def forget(self) -> None:
        """Hold no model any longer: the link after it has been made of it."""
        self._of = self._model = None

    def done(self, victim: Victim) -> list[tuple[str, Attacked]]:
        """What each link so far did to a model, in their order; a link's curve is the look at what it left."""
        before = [] if self.earlier is None else self.earlier.done(victim)
        return [*before, *([(self.label, self.made[_key(victim)])] if _key(victim) in self.made else [])]


def _key(victim: Victim) -> tuple[str, str]:
    return victim.role, str(victim.directory)


def apply_chain(victim: Victim, links: Sequence[tuple[str, Link]]) -> Attacked:
    """What a chain of links leaves, each given with its label; of one link what that leaves.

    Returns:
        What the last link left. The displacement is that of the whole chain, `links` has what each link did, and
        the curve a look at the saved model and at what each link left that changed the weights (its step is how many
        links were made). A look leaves out the groups on which the links so far have trained.
    """
    *earlier, (label, last) = links
    if not earlier:
        return last(victim)
    left: Left | None = None
    for name, link in earlier:
        left = Left(name, link, left, victim.probe)
    attacked = last(replace(victim, earlier=left, probe=None))
    assert left is not None
    done = [*left.done(victim), (label, attacked)]
    seen = frozenset[str]().union(*(each.seen for _, each in done))
    asks = bool(attacked.asked or attacked.headlines or attacked.measured)
    looks: list[Mapping[str, float]] = [each.curve[0] for _, each in done[:-1]]
    if victim.probe is not None:
        first = victim.probe(victim.load(), frozenset())
        looks = [first, *looks, *([] if asks else [victim.probe(attacked.model, seen)])]
    rows, moved = weight_change(victim, attacked.model)
    return replace(
        attacked,
        did=moved,
        links=[{"attack": name, **each.did} for name, each in done],
        seen=seen,
        curve=[{"step": float(step), **look} for step, look in enumerate(looks)] if victim.probe is not None else [],
        layers=[row for row in rows if row["attack"] > 0],
    )
