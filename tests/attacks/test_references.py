"""The retrained model is attacked once a process for each attack and seed, not once a run."""

from __future__ import annotations

import letgo
from letgo.attacks import run as attacking

ATTACK = "relearn:steps=2,learning_rate=1e-3,batch_size=4,holdout=0.5,seeds=2,evaluations=0"


def test_runs_under_the_same_attack_share_the_retrained_models(monkeypatch):
    monkeypatch.setattr(attacking, "_REFERENCES", {})
    attacked = []
    real = attacking._attacked

    def counted(function, victim, plan, settings, seed):
        attacked.append((str(victim.directory), seed))
        return real(function, victim, plan, settings, seed)

    monkeypatch.setattr(attacking, "_attacked", counted)
    how = {"benchmark": "biographies", "original": "biographies", "limit": 40}
    first = letgo.attack("biographies-retrained", [ATTACK], **how)
    assert len(attacked) == 4, "two seeds of the model, two of the reference"
    again = letgo.attack("biographies-retrained", [ATTACK], **how)
    assert len(attacked) == 6, "the reference is not attacked again"
    assert again.attacks[0].per_seed == first.attacks[0].per_seed
    letgo.attack("biographies-retrained", [ATTACK], **(how | {"limit": 41}))
    assert len(attacked) == 10, "scored on other items it is another measurement"
