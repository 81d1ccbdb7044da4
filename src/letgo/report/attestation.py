"""`letgo attest`: what a run's record says, as an in-toto statement that names every file by its digest.

The form is in-toto's Statement v1 (github.com/in-toto/attestation, spec/v1); what is stated of the files is of a type
of letgo's own (`PREDICATE`, docs/attestation.md). The statement goes to others: it has no subject's name, no row and no
folder of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError
from letgo.core.files import read_json, write_json
from letgo.core.fingerprints import file_digests
from letgo.core.locks import only_writer
from letgo.core.progress import Reporter, usual
from letgo.models.adapters import BASE_FILE, MERGED
from letgo.models.formats import EXPORT
from letgo.report.limits import limits, not_tried
from letgo.report.rendering import without_folders
from letgo.report.settings import settings
from letgo.report.signature import check_private_key, sign
from letgo.runs.digests import attacked_files, differing, model_files, place_of, tokenizer_files
from letgo.runs.results import (
    CONFIG_FILE,
    HISTORY_FILE,
    RESULT_FILE,
    SAMPLES_FILE,
    SIGNATURE_FILE,
    STATEMENT_FILE,
    AttackResult,
    Audit,
    Judgement,
    Metrics,
    Result,
    now,
    read_result,
)

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:letgo:predicate:unlearning:v1"
RECORDS = {
    RESULT_FILE: "record",
    SAMPLES_FILE: "samples",
    HISTORY_FILE: "history",
    CONFIG_FILE: "settings",
}
"""A run's own files, and which part of it each is."""


def attest(directory: str | Path, *, sign_with: str | Path | None = None, reporter: Reporter | None = None) -> Path:
    """Write `attestation.json` into a run's directory: an in-toto statement of what its record says, with the digest of
    each of its files.

    Args:
        directory: of a run, an evaluation, or attacks on a model.
        sign_with: a private key on an elliptic curve (PEM); `attestation.sig` is then the statement's signature.
        reporter: where progress goes.

    Returns:
        The statement's path.

    Raises:
        UserError: no such run, or one that failed; a file is another than its record is bound to; the key can't be
            used.
    """
    directory, reporter = Path(directory), usual(reporter)
    result = read_result(directory)
    if result.status == "failed":
        raise UserError(f"{directory}: the run failed ({'; '.join(result.reasons)}); there is nothing to attest")
    if sign_with is not None:
        check_private_key(Path(sign_with))
    with only_writer(directory):
        parts = parts_of(directory, result)
        digests = file_digests({name: path for name, (_, path) in parts.items()}, reporter=reporter)
        if others := differing(result, digests):
            raise UserError(
                f"{directory}: {', '.join(f'{name} ({part})' for part, name in others)}: not as when the record was "
                f"made, so {RESULT_FILE} does not speak of it\n  put the file back, or attack and measure the model "
                "that is there now"
            )
        statement, signature = directory / STATEMENT_FILE, directory / SIGNATURE_FILE
        # An older statement's signature must not stand beside this one.
        signature.unlink(missing_ok=True)
        write_json(statement, statement_of(result, digests, {name: part for name, (part, _) in parts.items()}))
        if sign_with is not None:
            sign(statement, signature, Path(sign_with))
    return statement


def statement_of(result: Result, digests: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, Any]:
    """The statement on files of these digests, each of which is this part of the run."""
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": digest}, "annotations": {"part": parts[name]}}
            for name, digest in digests.items()
        ],
        "predicateType": PREDICATE,
        "predicate": {
            **facts_of(result),
            "limits": limits(result),
            "notTried": not_tried(result),
            "attested": now(),
        },
    }


def facts_of(result: Result) -> dict[str, Any]:
    """What a statement takes from a record as it is: the same for the same record."""
    bound = result.digests
    sets = {} if bound is None else {name: digest.model_dump() for name, digest in bound.data.items()}
    stages = {"before": result.before, "after": result.after, **result.references}
    return {
        "run": {"id": result.run_id, "created": result.created, "status": result.status, "reasons": result.reasons},
        "settings": {name: without_folders(text) for name, text in settings(result.config)},
        "base": [] if bound is None else [{"name": n, "digest": {"sha256": d}} for n, d in bound.base.items()],
        "data": {"key": bound.data_key if bound else None, "sets": sets},
        "environment": {"letgo": result.letgo, "git": result.git, **result.versions},
        "judgement": None if result.judgement is None else _judgement(result.judgement),
        "metrics": {stage: _metrics(metrics) for stage, metrics in stages.items() if metrics},
        "attacks": [_attack(attack) for attack in result.attacks],
        "robustness": result.robustness,
        "audit": None if result.audit is None else _audit(result.audit),
    }


def _metrics(metrics: Metrics) -> dict[str, Any]:
    return {name: metric.model_dump(mode="json") for name, metric in metrics.items()}


def _judgement(judgement: Judgement) -> dict[str, Any]:
    """The judgement with the number of the subjects revealed in the place of their names."""
    people = judgement.subjects
    counts = None
    if people is not None:
        counts = {
            "of": people.of,
            "before": people.before,
            "after": len(people.after),
            "worst": len(people.worst),
            "bound": people.bound,
        }
    plain = judgement.model_dump(mode="json", include={"word", "why", "target", "shares"})
    return plain | {"subjectsRevealed": counts}


def _audit(audit: Audit) -> dict[str, Any]:
    """Which model was audited, what was asked, and which attacks of the plan were not made."""
    plain = audit.model_dump(mode="json", include={"kind", "weights", "base_weights", "suite", "threshold", "budget"})
    return plain | {
        "model": without_folders(audit.model),
        "base": None if audit.base is None else without_folders(audit.base),
        "made_by": {name: without_folders(said) for name, said in audit.made_by.items()},
        "attacks": [without_folders(attack) for attack in audit.attacks],
        "not_tried": [
            {"attack": without_folders(each.attack), "reason": without_folders(each.reason), "failed": each.failed}
            for each in audit.not_tried
        ],
    }


def _attack(attack: AttackResult) -> dict[str, Any]:
    kept = ("seeds", "kept", "kept_ci95", "bound", "threshold")
    return {
        "attack": without_folders(attack.label),
        **attack.model_dump(mode="json", include=set(kept)),
        "outcome": attack.outcome,
        "subjectsRevealed": len(attack.revealed),
        "files": {name: file["sha256"] for name, file in attacked_files(attack).items()},
    }


def model_place(directory: Path, result: Result) -> Path | None:
    """Where the files of the model that a record is of are: in the run's directory; or, of an evaluation or of attacks
    on a bare model, where its settings say, if they are on this machine."""
    if model_files(directory):
        return directory
    named = result.config.get("unlearned") or (result.config.get("model") if result.evaluation else None)
    return place_of(str(named)) if named else None


def parts_of(directory: Path, result: Result) -> dict[str, tuple[str, Path]]:
    """The files that a run consists of: by name, which part each is, and its path. A model that lies elsewhere has its
    files' names alone."""
    place = model_place(directory, result)
    parts: dict[str, tuple[str, Path]] = {}
    if place is not None:
        files = model_files(place) if place.is_dir() else {place.name: place}
        parts |= {name: ("weights", path) for name, path in files.items()}
        parts |= {
            name: ("tokenizer", path) for name, path in (tokenizer_files(place) if place.is_dir() else {}).items()
        }
    for folder, part in ((MERGED, "merged model"), (EXPORT, "exported file")):
        inner = sorted(path for path in (directory / folder).glob("*") if path.is_file() and path.name[0] != ".")
        parts |= {f"{folder}/{path.name}": (part, path) for path in inner}
    records = {name: (part, directory / name) for name, part in {**RECORDS, BASE_FILE: "weights"}.items()}
    parts |= {name: there for name, there in records.items() if there[1].is_file()}
    for name, (_, path) in parts.items():
        if path.is_symlink() and place == directory:
            raise UserError(f"{directory / name} is a link: put the file itself there, and the record holds for it")
    return parts


def read_statement(directory: Path) -> dict[str, Any]:
    """A run's statement; a `UserError` says what in it is not as letgo writes it."""
    path = directory / STATEMENT_FILE
    raw = read_json(path)
    problem = _flaw(raw)
    if problem:
        raise UserError(f"{path}: {problem}")
    statement: dict[str, Any] = raw
    return statement


def _flaw(raw: Any) -> str:
    """What in a statement is not as the form has it; "" where all is."""
    if not isinstance(raw, dict) or raw.get("_type") != STATEMENT:
        return f"not an in-toto statement ({STATEMENT})"
    if raw.get("predicateType") != PREDICATE or not isinstance(raw.get("predicate"), dict):
        return f"states something else than {PREDICATE}"
    subjects = raw.get("subject")
    if not isinstance(subjects, list) or not subjects:
        return "names no file"
    for subject in subjects:
        digest = subject.get("digest") if isinstance(subject, dict) else None
        name = subject.get("name") if isinstance(subject, dict) else None
        if not isinstance(name, str) or not isinstance(digest, dict) or not isinstance(digest.get("sha256"), str):
            return "a subject without a name or a sha256"
        if name.startswith("/") or ".." in Path(name).parts or "\0" in name:
            return f"a subject's name leads out of the directory ({name!r})"
        if not isinstance(subject.get("annotations", {}), dict):
            return f"the annotations of {name} are no mapping"
    return ""
