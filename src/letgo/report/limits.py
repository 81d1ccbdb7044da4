"""What a record does not say: which attacks were not tried, what was not asked, what it is not bound to."""

from __future__ import annotations

from letgo.attacks import ATTACKS
from letgo.report.numbers import percent
from letgo.report.rendering import without_folders
from letgo.report.wording import wording_caution
from letgo.runs.results import Result


def not_tried(result: Result) -> list[str]:
    """The attacks of this letgo that were not made, by name."""
    return [name for name in ATTACKS.names() if name not in {attack.name for attack in result.attacks}]


def limits(result: Result) -> list[str]:
    """The limits of what a record shows, a sentence each."""
    sentences = (*_attacks(result), *_questions(result), *_bound(result), _ALWAYS)
    return [without_folders(sentence) for sentence in sentences if sentence]


_ALWAYS = "What was not tried may bring back what was tried did not: this is no proof of erasure."


def _attacks(result: Result) -> list[str]:
    if result.evaluation:
        return ["The model was only scored: whether it forgot anything, and whether that lasts, was not measured."]
    left = ", ".join(not_tried(result))
    planned = [] if result.audit is None else result.audit.not_tried
    of_plan = [
        f"Of the audit's attacks {each.attack} {'could not be finished' if each.failed else 'was left out'}: "
        f"{each.reason.rstrip('.')}."
        for each in planned
    ]
    if not result.attacks:
        none = f"No attack was made, so whether the forgetting lasts was not measured. Not tried: {left}."
        return [none, *of_plan]
    sentences = [*([f"Attacks not tried: {left}."] if left else []), *of_plan]
    searched = {attack.name for attack in result.attacks if attack.trials}
    if plain := [attack.label for attack in result.attacks if attack.name not in searched]:
        sentences.append(
            f"These attacks were made with these settings alone, and stronger ones not tried: {'; '.join(plain)}."
        )
    untold = [attack.label for attack in result.attacks if attack.outcome == "can't tell"]
    if untold:
        sentences.append(
            f"Nothing can be told from these attacks, which leave no model its knowledge: {'; '.join(untold)}."
        )
    return sentences


def _questions(result: Result) -> list[str]:
    limit = result.config.get("eval_limit")
    judgement = result.judgement
    sentences = [
        wording_caution(result),
        f"At most {limit} items of each set were asked." if limit else "",
        "Only the questions of samples.jsonl were asked: other wordings, languages and ways of asking were not.",
    ]
    if judgement is None:
        return sentences
    floors = {share.floor_of for share in judgement.shares}
    if floors and "retrained" not in floors:
        sentences.append(
            "No model that never saw the forget set was there to compare with: its level is taken from "
            f"{' and '.join(sorted('invented facts' if floor == 'control' else floor for floor in floors))}."
        )
    if people := judgement.subjects:
        sentences.append(
            f"{len(people.worst)} of {people.of} subjects are revealed; by a one-sided 95 % bound up to "
            f"{percent(people.bound)} of such subjects may be."
        )
    sentences.append(f"One run, of seed {result.seed}: what another seed gives was not measured.")
    return sentences


def _bound(result: Result) -> list[str]:
    digests = result.digests
    if digests is None:
        return ["The record is of an older letgo, which bound it to no model and no data."]
    names = {
        "the model before unlearning": bool(digests.base) or result.evaluation,
        "the model's files": bool(digests.model),
        "the tokenizer": bool(digests.tokenizer),
        "the data": bool(digests.data),
    }
    if missing := [name for name, there in names.items() if not there]:
        return [f"The record is not bound to {', '.join(missing)}: no files, or no key, were at hand."]
    return []
