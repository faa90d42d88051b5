"""EffOPD (arXiv 2605.11739, from notes on it): after steps 1, 2, 4, 8, ... the student goes on in its own direction.

theta + 2^k delta is tried for k = 0, 1, 2, ..., with delta what the weights moved since the last such step, and taken
while the loss on the held-out examples (some 50) falls. AdamW's moments stay as they are.

Settings:
    hooks = [{ kind = "effopd:EffOpd" }]
    evaluation = { loss = true }
"""

from pathlib import Path

from preceptor_client.extend import RunState, StepDone
from safetensors.torch import load_file, save_file


class EffOpd:
    """Remembers the weights that the student goes on from."""

    def on_start(self, at: RunState) -> None:
        start = getattr(self, "last", None) or at.student.model.state_dict()
        self.last = {name: weight.to(at.student.device, copy=True) for name, weight in start.items()}

    def on_step(self, done: StepDone) -> None:
        if done.step & (done.step - 1):
            return  # no power of 2
        model, last, lowest, k = done.student.model, self.last, float("inf"), 0
        theta = trial = {name: weight.clone() for name, weight in model.state_dict().items()}
        while (loss := done.measured("loss")) < lowest:
            self.last, lowest = trial, loss
            trial = {name: weight + 2**k * (weight - last[name]) for name, weight in theta.items()}
            model.load_state_dict(trial)
            k += 1
        model.load_state_dict(self.last)

    def save(self, folder: Path) -> None:
        save_file(self.last, folder / "last.safetensors")

    def load(self, folder: Path) -> None:
        self.last = load_file(folder / "last.safetensors")
