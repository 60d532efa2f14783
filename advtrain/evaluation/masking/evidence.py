"""What AutoAttack has found already, as the checks take it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class AutoAttackEvidence:
    """AutoAttack's verdicts on the images of the checks, and its flags.

    Attributes:
        flags: its warnings, each with `name` (as in `attack_log`) and `message`; of the whole run.
        broken_by: int, shape (n,): for each image -2 when misclassified anyway, -1 when robust, otherwise the place in
            `attack_names` of the attack that broke it first.
        attack_names: what ran, in order, e.g. apgd-ce, apgd-t, fab-t, square.
        n_examples: images of the whole run; those of `broken_by` when None.
        square_alone: images of the whole run that Square alone broke; counted from `broken_by` when None.
    """

    flags: Sequence[Mapping[str, Any]]
    broken_by: Tensor
    attack_names: Sequence[str]
    n_examples: int | None = None
    square_alone: int | None = None

    def ran(self, *kinds: str) -> bool:
        """Whether an attack of one of these kinds (apgd, fab, square) was part of it."""
        return any(name.startswith(kinds) for name in self.attack_names)

    def broken(self, *kinds: str) -> Tensor:
        """Which images attacks of these kinds broke first, bool (n,)."""
        places = [place for place, name in enumerate(self.attack_names) if name.startswith(kinds)]
        return torch.isin(self.broken_by.cpu().long(), torch.tensor(places, dtype=torch.int64))

    def first(self, n: int) -> "AutoAttackEvidence":
        """The same for the first `n` images; counts of the whole run stay."""
        whole, alone = self.whole()
        return AutoAttackEvidence(self.flags, self.broken_by[:n], self.attack_names, whole, alone)

    def whole(self) -> tuple[int, int]:
        """Images of the whole run, and those of them that Square alone broke."""
        n = len(self.broken_by) if self.n_examples is None else self.n_examples
        alone = int(self.broken("square").sum()) if self.square_alone is None else self.square_alone
        return n, alone
