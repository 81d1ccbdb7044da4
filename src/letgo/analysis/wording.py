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
    several = len(smoothed) > 1
    out = []
    for one in smoothed:
        each = f"σ = {one.sigma:.3g}" + (" times its tensor's root mean square" if relative else "")
        noise = f"the smoothed model, which adds Gaussian noise of {each} to every weight for each answer,"
        if one.together.radius > 0:
            out.append(
                f"With confidence {exact_percent(1 - alpha)}{' for all σ together' if several else ''}: {noise} has a "
                f"chance below 1/2 that {criterion.event(count)}, after any change of all its weights of {size} below "
                f"R = {one.together.radius:.3g}. Without a change that chance is at most "
                f"{1 - one.together.p_lower:.3g} ({one.together.revealed} of {one.together.draws} draws)."
            )
        else:
            out.append(
                f"Nothing is certified for the questions together at {each}: in {one.together.revealed} of "
                f"{one.together.draws} draws {criterion.event(count)}, so the chance can't be shown to be below 1/2."
            )
        if criterion.single and one.questions:
            good = [q.bound.radius for q in one.questions if q.bound.radius > 0]
            if good:
                out.append(
                    f"With confidence {exact_percent(1 - alpha)} for all of them at once: each of {len(good)} of the "
                    f"{count} questions by itself is revealed with a chance below 1/2 after any change of {size} below "
                    f"its own radius, which is from {min(good):.3g} to {max(good):.3g} at {each}."
                )
            else:
                out.append(f"No single question of the {count} is certified at {each}.")
        if one.collapsed:
            out.append(
                f"At {each} the smoothed model is broken ({'; '.join(one.collapsed)}): that it reveals nothing is then "
                "no merit."
            )
    return [sentence[0].upper() + sentence[1:] for sentence in out]


def not_certified_sentences(
    criterion: Criterion, count: int, smoothed: Sequence[Smoothed], known: Sequence[Displacement], relative: bool
) -> list[str]:
    """What does not follow."""
    out = [
        "The model without noise: it is another model than the smoothed one, and nothing is proven of it.",
        f"Other questions, wordings, prompts or ways to ask than these {count}; “revealed” means "
        f"only that {criterion.in_words()}.",
        "Changes that are not of these weights: prompts, sampling, adapters beside them, other layers, other tokens.",
        "That the chance is small: inside the radius it is below 1/2, near its border no more than that.",
    ]
    attacks = [one for one in known if one.what == "attack" and one.value]
    outside = [
        one for one in attacks if all(one.value is not None and one.value >= s.together.radius for s in smoothed)
    ]
    if outside:
        least = min(one.value for one in outside if one.value is not None)
        most = max(s.together.radius for s in smoothed)
        size = "further" if most == 0 else f"at least {least / most:,.3g} times further"
        all_of = "The recorded attacks move" if len(outside) == len(attacks) else "Some recorded attacks move"
        out.append(
            f"{all_of} the weights {size} than the largest radius: the certificate says nothing against them. A radius "
            "is some σ wide, while the noise as a whole is σ√d: with many weights it is small beside most attacks."
        )
    if relative:
        out.append(
            "Changes of the plain l2 norm R: sizes here are rescaled, each tensor's change divided by the root mean "
            "square of its weights before the norm is taken."
        )
    return out
