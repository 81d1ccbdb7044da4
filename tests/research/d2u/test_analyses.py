"""Connectivity and certificates in the page, read from the analyses' own files."""

from __future__ import annotations

from letgo.analysis.records import Barrier, Bound, Certificate, Connectivity, LinearPath, Smoothed, write_analysis
from research.d2u import analyses

ADAM, SIGN, HYBRID = (
    "runs/optimizer_adamw_learning_rate_0.00025-seed0",
    "runs/optimizer_sign_adam_learning_rate_0.0001-seed0",
    "runs/optimizer_fozo_fo_steps_12_zo_steps_12_z-seed0",
)
MADE = {"created": "2026-11-21T21:00:00+00:00", "letgo": "0.1.0", "versions": {}, "git": None}


def path(first, second, retain):
    none = Barrier(rise=0.0, rise_at=0.0, fall=0.0, fall_at=0.0)
    barriers = {"retain_loss": Barrier(rise=retain, rise_at=0.5, fall=0.0, fall_at=0.0), "forget_loss": none}
    return LinearPath(first=first, second=second, distance=3.5, relative_distance=0.04, points=[], barriers=barriers)


def certificate():
    bound = Bound(revealed=3, draws=100, alpha=0.01, p_lower=0.9, radius=0.0064)
    smoothed = Smoothed(
        sigma=0.005, noise_norm=4.5, together=bound, questions=[], reach=[], utility={}, utility_draws=5, broken=0
    )
    return Certificate(
        subject=ADAM,
        settings={},
        parameters=9,
        criterion="choice",
        event="half of the questions",
        asked=20,
        plain_revealed=9,
        alpha=0.01,
        relative=False,
        plain_utility={},
        smoothed=[smoothed],
        displacements=[],
        certified=[],
        not_certified=[],
        **MADE,
    )


def test_basins_and_barriers(tmp_path):
    paths = [path(ADAM, SIGN, 0.002), path(ADAM, HYBRID, 0.4)]
    entry = Connectivity(subject="all", models=[ADAM, SIGN, HYBRID], settings={}, parameters=9, paths=paths, **MADE)
    write_analysis(tmp_path, entry)
    connectivities, certificates = analyses.read(tmp_path)
    verdict, figure = analyses.basin(connectivities, "AdamW", "SignAdam")
    assert verdict == "holds"
    assert figure.startswith("NPO, seed 0: between AdamW and SignAdam the retain loss rises by 0.0")
    assert analyses.basin(connectivities, "FOZO", "AdamW")[0] == "does not hold"
    assert analyses.basin(connectivities, "AdamW", "Sophia") == ("not testable here", "")
    text = analyses.section(connectivities, certificates)
    assert "| AdamW – SignAdam | 3.50 | 0.0020 |" in text
    assert "a barrier |" in text


def test_certificates_stand_with_what_is_certified(tmp_path):
    write_analysis(tmp_path, certificate())
    text = analyses.section(*analyses.read(tmp_path))
    assert "| AdamW | 0.0050 | 3 of 100 | 0.90 | 0.0064 |" in text
    assert "(half of the questions)" in " ".join(text.split())


def test_without_analyses_it_says_so(tmp_path):
    assert analyses.section(*analyses.read(tmp_path)) == "Not measured."


def test_the_name_of_a_runs_directory_tells_its_grade():
    assert analyses.grade_of(SIGN) == "SignAdam"
    assert analyses.grade_of(HYBRID) == "FOZO"
    assert analyses.grade_of("optimizer_compressed_bits_4_learning_rate_0.0002-seed0") == "4-bit"
    assert analyses.grade_of("biographies") == "biographies"
