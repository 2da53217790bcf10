"""All that changes during a run, besides weights and optimizer moments."""

from typing import NamedTuple


class TrainingState(NamedTuple):
    """How far a run is. The order of samples and every random stream follow from it."""

    step: int = 0
    samples: int = 0
    tokens: int = 0

    def after(self, num_samples: int, seq_length: int) -> "TrainingState":
        """Return the state one optimizer step later."""
        return TrainingState(
            self.step + 1, self.samples + num_samples, self.tokens + num_samples * seq_length
        )


class Best(NamedTuple):
    """The step of a run whose validation loss is the lowest so far."""

    step: int
    valid_loss: float
