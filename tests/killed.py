"""A label-free fit that is interrupted in its middle."""

from nhl_fast.fit.learn import Learner


def after(steps, monkeypatch):
    """Interrupt every fit after so many steps, until `monkeypatch.undo()`."""
    take, taken = Learner.take_step, []

    def killed(self):
        if len(taken) == steps:
            raise KeyboardInterrupt
        taken.append(1)
        return take(self)

    monkeypatch.setattr(Learner, "take_step", killed)
