"""Steps that did harm, or would have: loss or gradients that are not finite, and loss spikes."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.training.engine import StepResult

# Losses that a spike is measured by, and how many of them say enough.
WINDOW, ENOUGH = 100, 20


class Guard:
    """Counts bad steps, and says when the run must go back to its newest checkpoint.

    Loss, and whether a step was applied, are the same on all ranks, and so are these decisions.
    """

    def __init__(self, config: Config) -> None:
        self.options = config.guard
        # fp16 finds its loss scale by steps that are not applied.
        self.scales_loss = config.precision == "fp16"
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.bad_steps = self.in_a_row = self.rewinds = 0

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs in order to judge as this one would."""
        return {
            "bad_steps": self.bad_steps,
            "in_a_row": self.in_a_row,
            "rewinds": self.rewinds,
            "losses": list(self.losses),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state; an empty one is that of a new run."""
        self.bad_steps, self.in_a_row = saved.get("bad_steps", 0), saved.get("in_a_row", 0)
        self.rewinds = saved.get("rewinds", 0)
        self.losses = deque(saved.get("losses", ()), maxlen=WINDOW)

    def judge(self, result: StepResult) -> str | None:
        """Return what was wrong with a step, or None; count it."""
        reason = self._reason(result)
        if reason is None:
            self.in_a_row = 0
            if math.isfinite(result.loss):
                self.losses.append(result.loss)
        else:
            self.bad_steps += 1
            self.in_a_row += 1
        return reason

    @property
    def must_rewind(self) -> bool:
        """Whether as many steps in a row were bad as are taken."""
        return self.in_a_row >= self.options.max_bad_steps

    def rewind(self) -> None:
        """Note that the run goes back.

        Raises:
            UserError: it has gone back as often as it may.
        """
        if self.rewinds >= self.options.max_rewinds:
            raise UserError(
                f"{self.in_a_row} steps in a row were bad, after {self.rewinds} returns to the "
                "newest checkpoint (guard.max_rewinds): look at the data named above, lower "
                "optimizer.lr, or set optimizer.gradient_clipping"
            )
        self.rewinds += 1
        self.in_a_row = 0

    def _reason(self, result: StepResult) -> str | None:
        if not math.isfinite(result.loss):
            return f"loss {result.loss}" + ("" if result.applied else ", not applied")
        if not result.applied and not self.scales_loss:
            return "gradients not finite, not applied"
        factor = self.options.spike_factor
        if factor is None or len(self.losses) < ENOUGH:
            return None
        median = statistics.median(self.losses)
        if result.loss > factor * median:
            return (
                f"loss {result.loss:.4f} is above {factor:g} times the median {median:.4f}, applied"
            )
        return None
