"""`letgo audit`: attack a model that anybody made, from cheap to dear, and write one record of what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from letgo.attacks.engine.run import with_attack
from letgo.attacks.engine.served import ANSWERS, answers_kept, needed, served_target
from letgo.attacks.engine.spec import THRESHOLD, AttackSpec, check_attacks, plan_attack
from letgo.attacks.engine.target import Target, about_audit, begun_with, measured, open_bare
from letgo.auditing.early import check_asked, requirement, seconds_asked, tries_asked
from letgo.auditing.gate import check_beforehand
from letgo.auditing.suites import Suite, Try, tries_of
from letgo.benchmarks import OWN_ROWS, benchmark_of
from letgo.benchmarks.engine.base import RETRAINED, Benchmark
from letgo.core.catalog import check_arguments
from letgo.core.environment import give_back_memory, peak_memory
from letgo.core.errors import LetgoError, UserError, WorldError, as_world_error, first_line
from letgo.core.files import remove_abandoned
from letgo.core.locks import check_unused, only_writer
from letgo.core.own import expect, noted
from letgo.core.progress import Reporter, usual
from letgo.core.values import Count, Share
from letgo.data.encode import Template
from letgo.models.files import remote_code
from letgo.models.load import load_model, weights_fingerprint
from letgo.models.origin import kind_of_model
from letgo.planning.audit import MEASURE, plan_audit
from letgo.planning.report import Plan, duration
from letgo.report.card import write_model_card
from letgo.report.html import write_report
from letgo.runs.digests import check_begun_with
from letgo.runs.query import RunQuery
from letgo.runs.results import (
    AUDIT,
    RESULT_FILE,
    Audit,
    NotTried,
    Result,
    is_run,
    read_result,
    read_samples,
)
from letgo.scoring.resume_log import PARTIAL
from letgo.scoring.server.calibration import check_weights
from letgo.scoring.server.served import Served, same_engine

REPORT = "report.html"
"""The page, in the audit's directory."""


@dataclass(frozen=True)
class Asked:
    """What an audit is asked for, checked.

    Attributes:
        model: the one to audit; `base` the one before unlearning, None where it is not known.
        data: the settings that name the benchmark or the user's own rows.
        tries: the suite's attacks and those named beside it.
        budget: seconds; None for no limit.
    """

    model: str | Served
    base: str | Served | None
    data: Mapping[str, Any]
    benchmark: Benchmark
    suite: str
    tries: Sequence[Try]
    threshold: float
    budget: float | None
    limit: int | None
    dtype: str
    template: Template | None
    weights: str | None


@dataclass(frozen=True)
class AuditPlan:
    """The attacks of an audit, the cheapest first, with the seconds that each may take; and what is left out."""

    attacks: Sequence[AttackSpec]
    seconds: Mapping[str, float]
    not_tried: Sequence[NotTried]
    text: str = ""


@noted()
def audit(
    model: str | Path | Served,
    *,
    base: str | Path | Served | None = None,
    benchmark: str | None = None,
    forget: str | Path | None = None,
    retain: str | Path | None = None,
    evaluate: str | Path | None = None,
    control: str | Path | None = None,
    retrained: str | Path | Served | None = None,
    suite: Suite = "standard",
    attacks: Sequence[str] = (),
    budget: str | float | None = None,
    threshold: Share = THRESHOLD,
    require: str | None = None,
    output: str | Path,
    limit: Count | None = None,
    dtype: str = "float32",
    template: Template | None = None,
    weights: str | None = None,
    resume: bool = False,
    trust_remote_code: bool | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Audit a model: measure it, attack it from cheap to dear, and write a record, a card and a page.

    Args:
        model: the model to audit, whoever made it: a directory, an adapter's directory, a `.gguf` file, a hub id, a
            built-in name; or one behind a server (`letgo.connect`), which is asked alone, and its base likewise.
        base: the model before unlearning, which is attacked alike. Without it there are levels and no shares, and
            nobody can tell what was forgotten.
        benchmark: what it is judged by; or instead the user's own rows: `forget`, and `retain`, `evaluate`, `control`
            as in a run.
        retrained: the model that never saw the forget set, where there is one.
        suite: quick, standard or thorough (`letgo.auditing.suites`).
        attacks: more attacks, each "NAME:key=value,…".
        budget: the most time that attacks may take, such as "30m": the dearest are then left out.
        threshold: the least share of the forgetting kept to have survived an attack.
        require: what will be required of the record (`letgo.check`), so that a name in it that the record can't have is
            told before anything long begins.
        output: the audit's directory: a new one, or with `resume` the one of an audit that was cut off.
        limit: at most so many items of each set.
        dtype, template: the weights' type, and how questions become prompts.
        weights: of a served model, where its weights are at hand: some items are scored by both, and the differences
            recorded (`config.calibration`).
        resume: go on with an audit that was cut off, to the same record.
        trust_remote_code: whether the models' own Python code may run; not by default.
        reporter: where progress goes.

    Returns:
        The record; `audit` says which model it is of, and which attacks were not made, and why.

    Raises:
        UserError: for a model, data or settings that can't be used.
    """
    query = requirement(require)
    check_arguments(audit, threshold=threshold, limit=limit, template=template)
    data = {"benchmark": benchmark, "forget": forget, "retain": retain, "evaluate": evaluate, "control": control}
    asked = checked(
        model,
        base,
        {name: str(value) for name, value in data.items() if value is not None},
        retrained=retrained,
        suite=suite,
        attacks=attacks,
        budget=budget,
        threshold=threshold,
        limit=limit,
        dtype=dtype,
        template=template,
        weights=weights,
    )
    folder = Path(output)
    with only_writer(folder, make=True), remote_code(trust_remote_code):
        # Whoever wrote here before has ended.
        remove_abandoned(folder, older_than=0)
        _check_output(folder, resume)
        return Auditing(asked, folder, usual(reporter), query).run()


def checked(
    model: str | Path | Served,
    base: str | Path | Served | None,
    data: Mapping[str, str],
    *,
    retrained: str | Path | Served | None,
    suite: str,
    attacks: Sequence[str],
    budget: str | float | None,
    threshold: float,
    limit: int | None,
    dtype: str,
    template: Template | None,
    weights: str | None = None,
) -> Asked:
    """What is asked for, as far as it can be checked before a model is read."""
    tries, seconds = tries_asked(suite, attacks), seconds_asked(budget)
    models = [each for each in (model, base, retrained) if each is not None]
    check_weights(model, weights)
    same_engine(models)
    check_asked([str(each) for each in models if not isinstance(each, Served)], data)
    measured_by = benchmark_of({**data, "template": template})
    if not measured_by.headlines:
        raise UserError(f"audit: benchmark {measured_by.name!r} names no metric that forgetting is judged by")
    if retrained is not None:
        named = retrained if isinstance(retrained, Served) else str(retrained)
        measured_by = replace(measured_by, references={**measured_by.references, RETRAINED: named})
    return Asked(
        model if isinstance(model, Served) else str(model),
        base if base is None or isinstance(base, Served) else str(base),
        {**data, **({} if retrained is None else {"retrained": str(retrained)})},
        measured_by,
        suite,
        tries,
        threshold,
        seconds,
        limit,
        dtype,
        template,
        weights,
    )


def _check_output(folder: Path, resume: bool) -> None:
    """Raise a `UserError` unless the directory is unused, or holds an audit that is to go on."""
    begun = is_run(folder) or any(list(folder.glob(name)) for name in (PARTIAL.format("*"), f"*{ANSWERS}"))
    if not begun:
        check_unused(folder)
        return
    if not resume:
        raise UserError(f"output directory {folder} holds an audit already; go on with --resume, or name another one")
    if is_run(folder) and read_result(folder).audit is None:
        raise UserError(f"output directory {folder} holds a run ({RESULT_FILE}), not an audit; name another one")


@dataclass
class Auditing:
    """An audit under way: what is asked, where it goes, and how long its attacks may take."""

    asked: Asked
    folder: Path
    reporter: Reporter
    query: RunQuery | None = None

    def run(self) -> Result:
        target = opened(self.asked, self.reporter)
        with answers_kept(target, self.folder):
            return self.attacked(*self.begin(target))

    def attacked(self, target: Target, plan: AuditPlan) -> Result:
        """Make the attacks that are left, and finish the record."""
        made = {attack.label for attack in target.result.attacks} | {each.attack for each in _about(target).not_tried}
        left = [each for each in plan.attacks if each.label not in made]
        for number, each in enumerate(left):
            expected = self.expected(target, plan, left[number:])
            used = target.result.seconds[MEASURE] + sum(attack.seconds for attack in target.result.attacks)
            if self.asked.budget is not None and used + (expected or [0.0])[0] > self.asked.budget:
                target = _with_not_tried(target, NotTried(attack=each.label, reason="the budget was used up before it"))
            else:
                count = len(plan.attacks) - len(left) + number + 1
                about = f", about {duration(sum(expected))} left" if expected else ""
                self.reporter.say(f"attack {count} of {len(plan.attacks)}: {each.label}{about}")
                target = self.tried(target, each)
            target.write(self.folder)
        return self.finish(target)

    def expected(self, target: Target, plan: AuditPlan, attacks: Sequence[AttackSpec]) -> list[float]:
        """The seconds that attacks may take: the plan's, by how wrong it was about the measuring. Empty where a plan
        has no times."""
        if not plan.seconds.get(MEASURE):
            return []
        rate = target.result.seconds[MEASURE] / plan.seconds[MEASURE]
        return [rate * plan.seconds[each.label] for each in attacks]

    def begin(self, target: Target) -> tuple[Target, AuditPlan]:
        """The model measured and recorded, by now or by an earlier process, and the plan of its attacks."""
        if is_run(self.folder):
            return self.gone_on(target)
        plan = planned(self.asked, target)
        self.check_gate(plan.attacks, plan.not_tried)
        self.reporter.say(plan.text)
        start = time.perf_counter()
        target = measured(target, self.folder)
        asked, labels = self.asked, [each.label for each in plan.attacks]
        about = about_audit(
            target, labels, asked.threshold, asked.suite, budget=asked.budget, not_tried=list(plan.not_tried)
        )
        update = {"audit": about, "seconds": {MEASURE: round(time.perf_counter() - start, 3)}}
        target = replace(target, result=target.result.model_copy(update=update))
        target.write(self.folder)
        return target, plan

    def check_gate(self, attacks: Sequence[AttackSpec], not_tried: Sequence[NotTried]) -> None:
        """Raise a `UserError` where the audit could never pass what is required of it."""
        if self.query is not None:
            check_beforehand(self.query, self.asked.benchmark, attacks, not_tried, base=self.asked.base is not None)

    def gone_on(self, target: Target) -> tuple[Target, AuditPlan]:
        """An audit that was cut off, with what it has by now."""
        earlier, asked = read_result(self.folder), self.asked
        expect(earlier.code_digests)
        about = earlier.audit
        assert about is not None  # `_check_output`
        now = dict.fromkeys((*OWN_ROWS, "benchmark", "retrained")) | target.result.config
        served = isinstance(asked.model, Served)
        now |= {"engine": asked.model.engine} if isinstance(asked.model, Served) else {}
        now["weights"] = asked.weights
        now |= {"dtype": None if served else asked.dtype, "eval_limit": asked.limit, "template": target.template}
        now |= {"suite": asked.suite, "budget": asked.budget, "threshold": asked.threshold}
        then = earlier.config | {"weights": earlier.config.get("calibration", {}).get("weights")}
        then |= {"suite": about.suite, "budget": about.budget, "threshold": about.threshold}
        plans, left_out = chosen(asked, target)
        then["attacks"] = sorted({*about.attacks, *(each.attack for each in about.not_tried)})
        now["attacks"] = sorted([*(each.label for each in plans), *(each.attack for each in left_out)])
        if changed := [name for name, value in now.items() if then.get(name) != value]:
            raise UserError(
                f"output directory {self.folder} holds an audit that was begun otherwise (it differs in "
                f"{', '.join(changed)}); go on as it was begun, or name another directory"
            )
        if not served and weights_fingerprint(load_model(str(asked.model), dtype=asked.dtype)) != about.weights:
            raise UserError(f"{asked.model}: its weights are others than those that {self.folder} is of")
        if earlier.digests is not None:
            check_begun_with(self.folder, earlier.digests, begun_with(target))
        by_label = {each.label: each for each in plans}
        if missing := [label for label in about.attacks if label not in by_label]:
            raise UserError(f"output directory {self.folder}: the attack {missing[0]} of its plan can't be made here")
        attacks = [by_label[label] for label in about.attacks]
        self.check_gate(attacks, about.not_tried)
        plan = AuditPlan(attacks, {} if served else timed(asked, attacks).seconds, about.not_tried)
        return replace(target, result=earlier, rows=read_samples(self.folder)), plan

    def tried(self, target: Target, plan: AttackSpec) -> Target:
        """The target with an attack in its record; or, where that could not be finished, with the reason."""
        try:
            return with_attack(target, plan)
        except WorldError:
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            # Another try would end so too: the audit goes on with what this machine can do.
            reason = first_line(as_world_error(error) or error)
        except LetgoError as error:
            reason = first_line(error)
        finally:
            give_back_memory()
        self.reporter.say(f"  {plan.label} could not be made: {reason}")
        return _with_not_tried(target, NotTried(attack=plan.label, reason=reason, failed=True))

    def finish(self, target: Target) -> Result:
        """Write the card and the page; what only an unfinished audit needs is then removed."""
        result = target.result
        peak = {name: max(count, result.peak_memory_bytes.get(name, 0)) for name, count in peak_memory().items()}
        seconds = {MEASURE: result.seconds[MEASURE], "attacks": round(sum(a.seconds for a in result.attacks), 3)}
        target = replace(target, result=result.model_copy(update={"peak_memory_bytes": peak, "seconds": seconds}))
        target.write(self.folder)
        write_model_card(self.folder, target.result)
        write_report([self.folder], self.folder / REPORT, say=self.reporter.say)
        for path in self.folder.glob(PARTIAL.format("*")):
            path.unlink(missing_ok=True)
        return target.result


def opened(asked: Asked, reporter: Reporter) -> Target:
    """The model to audit, still to be measured."""
    how: dict[str, Any] = {"limit": asked.limit, "template": asked.template, "prefix": AUDIT, "reporter": reporter}
    if not isinstance(asked.model, Served):
        original = None if asked.base is None else str(asked.base)
        return open_bare(asked.model, asked.benchmark, asked.data, original=original, dtype=asked.dtype, **how)
    known = asked.benchmark.references.get(RETRAINED)
    retrained = known if isinstance(known, Served) else None
    how |= {"at_hand": asked.weights, "dtype": asked.dtype}
    return served_target(asked.model, asked.benchmark, asked.data, original=asked.base, retrained=retrained, **how)


def _about(target: Target) -> Audit:
    assert target.result.audit is not None
    return target.result.audit


def _with_not_tried(target: Target, *more: NotTried) -> Target:
    about = _about(target)
    about = about.model_copy(update={"not_tried": [*about.not_tried, *more]})
    return replace(target, result=target.result.model_copy(update={"audit": about}))


def chosen(asked: Asked, target: Target) -> tuple[list[AttackSpec], list[NotTried]]:
    """The attacks that can be made on this model with these data and libraries, and the others with the reason. The
    attack that the user names must be one of the first."""
    kind = "" if isinstance(asked.model, Served) else kind_of_model(asked.model)
    plans, left_out = list[AttackSpec](), list[NotTried]()
    suite = {each.attack for each in tries_of(asked.suite)}
    for each in asked.tries:
        plan = plan_attack(each.attack, threshold=asked.threshold)
        if any(plan.label == other.label for other in plans):
            continue
        try:
            if each.needs_base and asked.base is None:
                raise UserError("it needs the model before unlearning (base)")
            if isinstance(asked.model, Served) and (why := needed(plan, asked.model)):
                raise UserError(why)
            if each.served_as and kind == "GGUF file":
                raise UserError(f"a GGUF file is not served as {each.served_as}")
            check_attacks([plan], target.victim())
        except UserError as error:
            if each.attack not in suite:
                raise
            left_out.append(NotTried(attack=plan.label, reason=first_line(error)))
        else:
            plans.append(plan)
    return plans, left_out


def planned(asked: Asked, target: Target) -> AuditPlan:
    """The attacks within the budget, the cheapest first."""
    plans, left_out = chosen(asked, target)
    if isinstance(asked.model, Served):
        # How fast a server is nobody knows beforehand.
        lines = [f"{len(plans)} attacks by questions: {', '.join(each.label for each in plans)}", *_skipped(left_out)]
        return AuditPlan(plans, {}, left_out, "\n".join(lines))
    plan = timed(asked, plans)
    # Operations, not seconds: the same order on every machine.
    order = sorted(plans, key=lambda each: plan.flops[each.label])
    if asked.budget is not None and plan.seconds:
        spent, within = plan.seconds[MEASURE], list[AttackSpec]()
        for each in order:
            spent += plan.seconds[each.label]
            if spent <= asked.budget:
                within.append(each)
                continue
            about = f"about {duration(plan.seconds[each.label])}, beyond the budget of {duration(asked.budget)}"
            left_out.append(NotTried(attack=each.label, reason=about))
        order = within
    lines = [
        plan.text(),
        f"{len(order)} attacks, the cheapest first: {', '.join(e.label for e in order)}",
        *_skipped(left_out),
    ]
    return AuditPlan(order, plan.seconds, left_out, "\n".join(lines))


def _skipped(left_out: Sequence[NotTried]) -> list[str]:
    return [f"not tried: {each.attack} ({each.reason})" for each in left_out]


def timed(asked: Asked, attacks: Sequence[AttackSpec]) -> Plan:
    """What the audit will take with these attacks."""
    settings = {name: value for name, value in asked.data.items() if name != "retrained"}
    settings |= {"model": str(asked.model), "dtype": asked.dtype}
    optional = {"eval_limit": asked.limit, "template": asked.template}
    settings |= {name: value for name, value in optional.items() if value is not None}
    return plan_audit(settings, attacks, asked.benchmark, original=None if asked.base is None else str(asked.base))


__all__ = ["REPORT", "Auditing", "audit", "checked", "chosen", "planned"]
