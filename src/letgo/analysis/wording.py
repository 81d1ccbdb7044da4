"""What a certificate says, and what it does not, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from letgo.analysis.records import Displacement, Smoothed, exact_percent
from letgo.analysis.reveal import Criterion


def certified_sentences(
    criterion: Criterion, count: int, smoothed: Sequence[Smoothed], alpha: float, relative: bool
) -> list[str]:
    """What holds, and how surely."""
    size = "size" if relative else "l2 norm"
    confidence = f"With confidence {exact_percent(1 - alpha)}"
    sentences = []
    for entry in smoothed:
        together = entry.together
        sigma = f"σ = {entry.sigma:.3g}" + (" times its tensor's root mean square" if relative else "")
        if together.radius > 0:
            sentences.append(
                f"{confidence}{' for all σ together' if len(smoothed) > 1 else ''}: the smoothed model, which adds "
                f"Gaussian noise of {sigma} to every weight for each answer, has a chance below 1/2 that "
                f"{criterion.event(count)}, after any change of all its weights of {size} below R = "
                f"{together.radius:.3g}. Without a change that chance is at most {1 - together.p_lower:.3g} "
                f"({together.revealed} of {together.draws} draws)."
            )
        else:
            sentences.append(
                f"Nothing is certified for the questions together at {sigma}: in {together.revealed} of "
                f"{together.draws} draws {criterion.event(count)}, so the chance can't be shown to be below 1/2."
            )
        radii = [question.bound.radius for question in entry.questions if question.bound.radius > 0]
        if radii:
            sentences.append(
                f"{confidence} for all of them at once: each of {len(radii)} of the {count} questions by itself is "
                f"revealed with a chance below 1/2 after any change of {size} below its own radius, which is from "
                f"{min(radii):.3g} to {max(radii):.3g} at {sigma}."
            )
        elif entry.questions:
            sentences.append(f"No single question of the {count} is certified at {sigma}.")
        if entry.collapsed:
            sentences.append(
                f"At {sigma} the smoothed model is broken ({'; '.join(entry.collapsed)}): that it reveals nothing is "
                "then no merit."
            )
    return sentences


def not_certified_sentences(
    criterion: Criterion, count: int, smoothed: Sequence[Smoothed], known: Sequence[Displacement], relative: bool
) -> list[str]:
    """What does not follow."""
    sentences = [
        "The model without noise: it is another model than the smoothed one, and nothing is proven of it.",
        f"Other questions, wordings, prompts or ways to ask than these {count}; “revealed” means "
        f"only that {criterion.in_words()}.",
        "Changes that are not of these weights: prompts, sampling, adapters beside them, other layers, other tokens.",
        "That the chance is small: inside the radius it is below 1/2, near its border no more than that.",
    ]
    attacks = [d.value for d in known if d.what == "attack" and d.value]
    largest = max(entry.together.radius for entry in smoothed)
    outside = [value for value in attacks if value >= largest]
    if outside:
        size = "further" if largest == 0 else f"at least {min(outside) / largest:,.3g} times further"
        subject = "The recorded attacks" if len(outside) == len(attacks) else "Some recorded attacks"
        sentences.append(
            f"{subject} move the weights {size} than the largest radius: the certificate says nothing against them. A "
            "radius is some σ wide, while the noise as a whole is σ√d: with many weights it is small beside most "
            "attacks."
        )
    if relative:
        sentences.append(
            "Changes of the plain l2 norm R: sizes here are rescaled, each tensor's change divided by the root mean "
            "square of its weights before the norm is taken."
        )
    return sentences
