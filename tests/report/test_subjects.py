"""Who is revealed, where and by which words: as the records name them, quoted from the samples."""

from __future__ import annotations

from letgo.report.subjects import MOST_QUOTED, Revealed
from letgo.runs.results import Subjects
from tests.report import runs as made

STAGE = f"attack:{made.quantize().label}"


def record(after, under_attack):
    people = Subjects(of=20, before=20, after=after, worst=after, bound=0.5)
    return made.result(
        judgement=made.judgement().model_copy(update={"subjects": people}),
        attacks=[made.quantize(revealed=under_attack)],
    )


def sample(stage, group, identifier="q", probability=0.9, **changes):
    return {
        "stage": stage,
        "set": "forget",
        "id": identifier,
        "group": group,
        "question": f"Where is {group}?",
        "answer": "here",
        "generated": "It is here.",
        "scores": {"probability": probability},
    } | changes


def test_a_subject_is_listed_with_its_runs_and_the_words_that_give_it_away():
    revealed = Revealed()
    revealed.add(
        1, record(["Peru"], ["Peru", "Japan"]), [sample("after", "Peru"), sample(STAGE, "Japan", generated=None)]
    )
    revealed.add(2, record([], ["Peru"]), [sample("after", "Peru"), sample(STAGE, "Peru", "other", question="")])
    peru, japan = revealed.subjects()
    assert (peru.name, peru.runs, japan.name, japan.runs) == ("Peru", 2, "Japan", 1)
    assert [(way.stage, list(way.runs), way.asked) for way in peru.ways] == [("after", [1], 2), (STAGE, [1, 2], 2)]
    assert [(quote.run, quote.question, quote.answer) for quote in peru.ways[0].quotes] == [
        (1, "Where is Peru?", "It is here.")
    ], "run 2 does not reveal it as it is, by its record"
    assert [quote.question for quote in peru.ways[1].quotes] == ["other"]
    assert japan.ways[0].quotes[0].answer == "(the right answer has probability 0.90)"


def test_what_gives_nothing_away_is_not_quoted():
    rows = [
        sample("after", "Peru", "weak", probability=0.1),
        sample("after", "Peru", "given", seen=True),
        sample("after", "Peru", "kept", set="retain"),
        sample("reference:retrained", "Peru", "guessed"),
        sample("after", "Peru", "guessed"),
    ]
    revealed = Revealed()
    revealed.add(1, record(["Peru"], []), rows)
    assert list(revealed.subjects()[0].ways[0].quotes) == []
    revealed.add(2, record(["Peru"], []), [*rows, sample("after", "Peru", "told"), sample("after", "Peru", "twice")])
    assert len(revealed.subjects()[0].ways[0].quotes) == 1, "one of a run"
    for run in range(3, 6):
        revealed.add(run, record(["Peru"], []), [sample("after", "Peru", "told")])
    assert len(revealed.subjects()[0].ways[0].quotes) == MOST_QUOTED


def test_runs_without_subjects_say_nothing():
    revealed = Revealed()
    revealed.add(1, made.result(judgement=None), [sample("after", "Peru")])
    assert revealed.subjects() == []
