"""What a page says of an audit: which model, who made it, what was asked, what was not tried."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from letgo.report.numbers import duration, number, percent, words
from letgo.runs.results import AttackResult, Digests, NotTried, Result

SHORT = 16
"""So many digits of a fingerprint stand in a sentence; the whole one is in the table."""
MOST_NAMED = 4
NOT_SEEN = "weights that letgo has not seen"
NAMED_ALONE = "Attacks that nobody named were not tried."


_GIVEN = ("benchmark", "forget", "retain", "evaluate", "control", "retrained", "dtype")
"""The command's options of the names that they have in a record."""


def name_of_model(result: Result) -> str:
    """What an audit's model is called: a hub id as it is; of a path the last part."""
    model = "" if result.audit is None else result.audit.model
    return model if result.audit and result.audit.kind in ("hub model", "built-in model") else PurePath(model).name


def subject(result: Result) -> str:
    """A sentence on what was audited; "" of what is no audit."""
    about = result.audit
    if about is None:
        return ""
    made = f", suite {about.suite}" if about.suite else ""
    made += f" within {duration(about.budget)}" if about.budget is not None else ""
    weights = f"weights {about.weights[:SHORT]}" if about.weights else NOT_SEEN
    return f"An audit of {name_of_model(result)} ({about.kind}, {weights}){made}"


def untried(result: Result) -> str:
    """A sentence on the attacks that were not made; "" where all were, and of what is no audit."""
    missing = [] if result.audit is None else result.audit.not_tried
    if not missing:
        return ""
    named = ", ".join(each.attack for each in missing[:MOST_NAMED])
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    failed = sum(each.failed for each in missing)
    broke = f"; {failed} of them could not be finished" if failed else ""
    return f"Not tried: {named}{more}{broke}"


def facts(result: Result) -> list[tuple[str, str]]:
    """Name and value of all that a record says of an audit, but for the attacks."""
    about = result.audit
    if about is None:
        return []
    rows = [("model", about.model), ("it is a", about.kind), ("fingerprint of its weights", about.weights or NOT_SEEN)]
    rows += [(f"SHA-256 of {name}", digest) for name, digest in (result.digests or Digests()).model.items()]
    rows += [(f"its files say: {name}", text) for name, text in about.made_by.items()]
    if not about.made_by:
        rows.append(("made by", "its files do not say"))
    rows.append(("before unlearning", about.base or "not known: levels, no shares"))
    if about.base_weights:
        rows.append(("fingerprint of its weights", about.base_weights))
    rows += [("suite", about.suite)] if about.suite else []
    rows += [("survived is", f"at least {percent(about.threshold)} of the forgetting kept")]
    if about.budget is not None:
        rows.append(("budget", duration(about.budget)))
    return rows


def not_tried(result: Result) -> list[NotTried]:
    return [] if result.audit is None else result.audit.not_tried


def limits(result: Result) -> str:
    """What the attacks that were not made are, as far as a suite can know."""
    about = result.audit
    if about is None:
        return ""
    return f"Attacks outside the suite {about.suite} were not tried either." if about.suite else NAMED_ALONE


def command(result: Result, output: str) -> str:
    """What to type to make the audit again; "" of what is no audit."""
    about, config = result.audit, result.config
    if about is None:
        return ""
    original = "--base" if about.suite else "--original"
    given = {name: str(config[name]) for name in _GIVEN if config.get(name) is not None}
    model, base, more = about.model, about.base, list[str]()
    engine, compared = config.get("engine"), config.get("calibration")
    if isinstance(engine, dict):
        # A served model is recorded as ADDRESS#NAME.
        server, _, model = model.partition("#")
        other, _, base = (base or "").partition("#")
        more = ["--server", server, *([f"{original}-server", other] if other not in ("", server) else [])]
        more += ["--tokenizer", "DIR"] if engine.get("level") == 1 else []
        more += ["--weights", str(compared.get("weights"))] if isinstance(compared, dict) else []
        given |= {"retrained": given["retrained"].partition("#")[2]} if "retrained" in given else {}
    parts = [
        "letgo",
        *(["audit", "--model"] if about.suite else ["attack"]),
        model,
        *([original, base] if base else []),
    ]
    parts += [*more, *(word for name, value in given.items() for word in (f"--{name}", value))]
    parts += ["--limit", str(config["eval_limit"])] if config.get("eval_limit") is not None else []
    parts += ["--threshold", str(about.threshold)]
    parts += ["--budget", f"{about.budget:.0f}s"] if about.budget is not None else []
    attacks = [] if about.suite else [word for attack in result.attacks for word in ("--attack", attack.label)]
    parts += [*(["--suite", about.suite] if about.suite else []), *attacks, "--output", output]
    return shlex.join(parts)


def attack_levels(attack: AttackResult, result: Result) -> str:
    """Where nobody knows the original: what the attacked model scores, beside what it scored before the attack."""
    shown = []
    for metric in (metric for metric in result.headlines if metric in attack.metrics):
        before = (attack.baseline.get("after") or result.after).get(metric)
        held = f" (without the attack {number(before.value)})" if before else ""
        shown.append(f"{words(metric)} {number(attack.metrics[metric].value)}{held}")
    return f"Under the attack {attack.label}: {', '.join(shown) or 'no headline metric was scored'}."
