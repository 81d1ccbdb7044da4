"""What stands around the figures: how they were made, and what was not done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from letgo.evidence.claims import LEAST
from letgo.evidence.records import Group, Record
from letgo.evidence.subjects import OBJECTIVES, SUBJECTS, title_of
from letgo.evidence.text import paragraph

SEEDS = 5
"""Of unlearning, that each grade was meant to have."""

_HEAD = """
# Evidence: does the optimizer decide what stays forgotten?

The claims of two papers, "Downgrade to Upgrade" (arXiv 2510.00761, D2U) and SOUL (arXiv 2404.18239), held against runs
of letgo. This page is made from the files in `results/` by one command,
`python -m letgo.evidence page results --output docs/evidence.md`; `sh runs/evidence.sh` makes those files again from
nothing. What does not hold here is said as plainly as what does. Most of the papers' statements are known to us from
notes and reviews, not from their own text: the wording is ours.

**What it can tell.** Three subjects. *Biographies*: a model of 0.8 million weights that knows 120 fictional people, of
whom 20 are to be forgotten (the model retrained without them is known). *Capitals*: SmolLM2-135M-Instruct, which knows
the capitals of 20 countries from its pretraining; the MLPs of the upper half of its layers are trained, for 24 steps,
and as no retrained model is known, R is the share kept. *TOFU*: the same model, fine-tuned on the 40 rows of TOFU's
forget01 (two authors) and the first 160 of its retain set till it knows them by heart; all weights are trained, for 20
steps of 4 rows, and the retain model is the one fine-tuned on the 160 rows alone. The first tuning scored the first 8
rows of each set (the retain model gives those answers 0.34), that of the other grades and the evidence 40 (0.13). None
of them settles anything about large models: a claim that holds here may fail there, and the other way round.

**Protocol.** The attacks, the target, the bound and the candidates of rates were committed before any grade was tuned;
the claims and how each is judged while NPO was being tuned, before any run of the ladder was attacked. Each objective's
own settings (retain weight, steering, layer) and the ranges of rates were chosen before that, on some thirty runs of
which forgetting and utility alone were looked at; two runs had been attacked to time the attacks, and the example in
`docs/example/` was known. Every grade is tuned in its rate to one forgetting (the retrained model's) within one loss
of utility, on seed 100; the evidence is on other seeds. The questions (the first 60 of each set: twelve people), the
division of the people by the attacker and the rounding are the same for all seeds: intervals are over seeds of
unlearning and say nothing about other people. Comparisons are paired over seeds, with Student's interval; with three
seeds that is wide, and few differences can be shown (n is the number of seeds). They are not corrected for their
number. Seconds are of one thread on a machine that others used at the same time, and held some runs for
minutes: passes are the measure of cost.

**Changed on the way**, after results had been seen: the bound for tuning GradDiff, RMU and the ideas was set at 0.88 of
the retain accuracy instead of 0.85. Where a grade's chosen rate left the room (below) on the evidence's seeds, another
rate of its tuning stands for it (the next one that had reached the target; under GradDiff one between those tried), and
the first is shown beside it. Under GradDiff no grade that was tuned first reached the target within the bound: they
stand at the rates that came nearest within the room, and the others were tuned to what those came to. Controls, AdamW
at a higher rate, were added when the first runs had shown that the grades differ in how deep they forget, and with them
the claims that name them. On capitals rates below the first ones were tried for grades that forgot more than the target
asks; the first relearners left nothing of the forgetting in the two runs that they were tried on (AdamW's and the
hybrid's, kept 0 on half and on all) and gave way to weaker ones; the hybrids stand at their next rate, for at the one
nearest to the target they left the room on seed 0; and the attacked runs are scored on eight countries where tuning had
ten. On TOFU the first rates forgot far too much or too little, so that others between them were tried, and the
zeroth-order phase takes half the rate that it takes on capitals, for over all weights that alone brought the perplexity
near the bound; the room was set to the target's number when the first run on all 40 rows, AdamW's, had come to 0.27,
for tuning had gone by the first 8; where the rate that stands missed the target by little or was not itself tried, its
grid says so. Muon alone for the hybrid's passes was added when Muon alone, for more, had been seen to keep most.

**Matched.** A grade takes part in comparisons where it reached the target in tuning, no seed's run collapsed, and the
means over the evidence's seeds are within its subject's room. {room}. Differences below {least} count as none.
"""

_FOOT = """
## What was not done

TOFU's larger splits, with models fine-tuned on all of its 4,000 rows (`sh runs/tofu10.sh`; its grids stand in
`recipes/evidence/`), and the published settings on models of billions of parameters: no accelerator was lent, and two
cores were shared. On TOFU most grades have one seed, which settles nothing, and further seeds were attacked by 4 bits
and relearning on one author alone (100 steps on both had left nothing of any grade on seed 0, 3 bits had broken every
model). Second-order grades other than Sophia with SOUL's Hessian, other retain terms and other budgets of steps were
not varied; the hybrid's schedule was under NPO on biographies alone. The seeds of the attacker and its choice of people
were not varied beyond what each attack's label says. Runs on TOFU that had left the room were not attacked to the end:
the hybrid with Muon at 0.0018 under NPO; under GradDiff the hybrid at 0.00011, the hybrid with Muon at 0.0024 and
SignAdam at 0.000025.
"""


def head(found: Mapping[str, Record]) -> str:
    names = {
        "forget_accuracy": "forget accuracy at most",
        "forget_probability": "forget probability at most",
        "retain_accuracy": "retain accuracy at least, as a share of that before,",
        "retain_probability": "retain probability at least, as a share of that before,",
        "general_perplexity": "general perplexity at most, as a multiple of that before,",
    }
    rooms = []
    for benchmark, subject in SUBJECTS.items():
        if found and benchmark not in {record.benchmark for record in found.values()}:
            continue
        limits = [f"{names[key]} {most:g}" for key, most in subject.room.items()]
        limits += [
            f"{names[key]} {most:g} times the retrained model's" for key, most in subject.room_of_retrained.items()
        ]
        rooms.append(f"{subject.title or benchmark.capitalize()}: {'; '.join(limits)}")
    room = ". ".join(rooms)
    text = _HEAD.strip().format(room=room, least=f"{LEAST:g}")
    title, _, rest = text.partition("\n\n")
    empty = "" if found else "\n\nNo ladder has been run yet."
    return f"{title}\n\n{paragraph(rest)}{empty}"


def foot(found: Mapping[str, Record], tried: Mapping[str, Sequence[Group]]) -> str:
    title, _, rest = _FOOT.strip().partition("\n\n")
    missing = [name for key, name in OBJECTIVES.items() if key not in found]
    told = f"The ladder under {' and '.join(missing)} (its grid is in `recipes/evidence/`). " if missing else ""
    run = {key: [g for g in record.groups if not g.superseded and g.plain] for key, record in found.items()}
    few = [f"{title_of(key)}: {', '.join(g.name for g in groups)}" for key, groups in run.items()]
    meant = {key: [*groups, *(g for g in tried.get(key, ()) if not g.superseded)] for key, groups in run.items()}
    short = {key: [f"{g.name} {len(g.cells)}" for g in groups if len(g.cells) < SEEDS] for key, groups in meant.items()}
    seeds = [f"{title_of(key)}: {', '.join(names)}" for key, names in short.items() if names]
    ran = f"Grades that were run after tuning: {'; '.join(few)}. " if few else ""
    fewer = f"Five seeds were meant for each; fewer have, under {'; '.join(seeds)}. " if seeds else ""
    return f"{title}\n\n{paragraph(told + ran + fewer + rest)}"
