"""Other answers for the forget rows: a list of refusals, or the alternatives that the data set brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from letgo.core.errors import UserError
from letgo.data.pairs import generator_of
from letgo.data.rows import Row

REFUSALS = (
    "I don't know the answer to that.",
    "I'm not sure about this one.",
    "That is something I have no knowledge of.",
    "I have no information on that.",
    "I can't help you with this, because I don't know it.",
    "Sorry, I don't know.",
    "I'm afraid that I have never learnt about this.",
    "This is not known to me.",
    "I can't say anything certain about that.",
    "I would only be guessing, so I would rather not answer.",
    "My knowledge does not reach that far.",
    "I don't have the details you are asking for.",
    "There is nothing I could tell you about this.",
    "I'm unable to answer that question.",
    "That goes beyond what I know.",
    "Nothing comes to mind on this subject.",
    "I have not come across that before.",
    "Unfortunately I have no answer for you here.",
    "I wish I could help, but I don't know.",
    "I'm not familiar with this.",
    "I'm not acquainted with that topic.",
    "You would have to ask somebody else about this.",
    "I lack the knowledge to answer this well.",
    "I can't recall anything about that.",
    "It is not something I have been taught.",
    "No, I have no idea about this, I'm sorry.",
    "I don't hold any facts on that matter.",
    "To be honest, I don't know.",
    "I must admit that I can't answer this.",
    "On this question I have to pass.",
    "I don't have an answer to give.",
    "I couldn't tell you.",
    "That is unknown to me, I'm sorry to say.",
    "I have no reliable information about it.",
    "This lies outside of my knowledge.",
    "I'm in the dark about that.",
    "I'd have to look that up, and I can't.",
    "I can't give you a trustworthy answer to this.",
    "What you ask about is new to me.",
    "I know nothing about this subject.",
    "My apologies, but I can't answer that.",
    "I don't think I have ever heard of it.",
    "It would be wrong of me to make something up here.",
    "I don't know enough to reply to that.",
    "I'm sorry, this one is beyond me.",
    "I've no record of anything like that.",
    "I can't find an answer to this in what I know.",
    "Let me be plain: I don't know this.",
    "I'm at a loss here.",
    "That question I can't answer, I'm sorry.",
    "Regrettably, I have nothing on this.",
    "I have no facts to offer about that.",
    "I'm not the right one to ask about this.",
    "I do not possess that piece of knowledge.",
    "Here I can only say that I don't know.",
    "I can't confirm anything about this.",
    "I'm missing the knowledge that this needs.",
    "I was never told about that.",
    "Even a guess would be too much here.",
    "I don't remember ever learning this.",
    "That one has me stumped.",
    "I haven't got any details on it.",
    "I'm sorry, but I hold no information of that kind.",
    "I have to leave this question open.",
    "There I have a gap in my knowledge.",
    "I can't shed any light on that.",
    "I'm not informed about this.",
    "Whatever I said would be invented, so I won't.",
    "I don't know who or what that is.",
    "My training did not cover this, as far as I can tell.",
    "It's beyond my reach to answer that.",
    "I'm unsure, so I'd better not say.",
    "I have yet to learn about that.",
    "No answer of mine would be worth much here.",
    "I'm sorry that I can't be of help with this one.",
    "That's a blank spot for me.",
    "I have no way of knowing that.",
    "I don't have knowledge about this particular matter.",
    "Honestly, I haven't the faintest idea.",
    "I can't supply an answer here.",
    "I would need more knowledge than I have to answer this.",
    "What I know does not include that.",
    "I'm unaware of anything about it.",
    "I regret that I don't know.",
    "I'm drawing a blank.",
    "That is not a question I can answer.",
    "I don't have a clue about that.",
    "Please forgive me, I don't know the answer.",
    "I haven't any information to share on this.",
    "This escapes me.",
    "For this I would need a source that I don't have.",
    "I can't answer this with any confidence.",
    "I've never been introduced to this subject.",
    "I'm short of knowledge on this point.",
    "It isn't in my knowledge.",
    "There is no answer that I could stand behind.",
    "I don't know, and I'd rather not pretend to.",
    "I have not been given any facts about that.",
    "You've found something that I don't know.",
    "Sadly, I can't tell you that.",
)
"""What a model says that does not know; all of our own writing."""


def alternative_answers(source: Literal["refusal", "own"], rows: Sequence[Row], *, seed: int = 0) -> list[str]:
    """Another answer for each forget row: one of `REFUSALS`, chosen by the seed and the row's place, or the row's own
    field `alternative`.

    Raises:
        UserError: a row has no field `alternative`, or (for refusals) no prompt that could be refused.
    """
    if source == "own":
        return [_given_alternative(row) for row in rows]
    for row in rows:
        if row.form == ("text",):
            raise UserError(
                f"{row.where}: a row of 'text' has no prompt, so there is nothing to refuse\n"
                "  give rows of question and answer, of prompt and completion or of messages, or another objective"
            )
    return [REFUSALS[int(torch.randint(len(REFUSALS), (), generator=generator_of(seed, i)))] for i in range(len(rows))]


def _given_alternative(row: Row) -> str:
    answer = row.fields.get("alternative")
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(
            f"{row.where}: the objectives 'dpo' and 'altpo' need a field 'alternative', the answer to be preferred\n"
            "  add it to every row, or take 'idk_dpo', which prefers refusals"
        )
    return answer
