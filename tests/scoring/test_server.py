"""A server as the backend of scoring: what it is asked, what it can't be, and how its failures are borne.

The server is one of the tests (`tests/servers.py`), with the interfaces of vLLM, of OpenAI's `echo` and of llama.cpp. A
real one of llama.cpp is asked in test_llama_cpp.py."""

from __future__ import annotations

import itertools
import json
import time

import pytest
import torch

from letgo.core.errors import NonFiniteLossError, UserError, WorldError
from letgo.scoring.resume_log import ResumeLog
from letgo.scoring.sampling import Sampling
from letgo.scoring.scoring import Query, generate, score
from letgo.scoring.server.client import Client, Refused
from letgo.scoring.server.probe import probe
from letgo.scoring.server.served import Served, connect, same_engine
from letgo.scoring.server.words import Words
from tests import tiny
from tests.servers import serving

KEY = "sk-very-secret"
QUERIES = [
    Query([1, 4, 5], [[7, 8, 9], [10, 2]]),
    Query([1], [[7, 8, 9, 10, 11, 12]]),
    Query([1, 4, 5, 7], [[2]]),
]
PROMPTS = [[1, 4, 5, 7], [1, 20, 21], [1, 4, 5, 7]]


@pytest.fixture(scope="module")
def words():
    return tiny.make_tokenizer()


@pytest.fixture(scope="module")
def weights():
    return tiny.make_model()


@pytest.fixture
def server(weights, words):
    with serving(weights, words) as state:
        yield state


def backend(state, tokenizer, **settings):
    """The served model, with short pauses between tries."""
    client = Client(state.url, **{"pause": 0.001, "tries": 3, "timeout": 5.0, **settings})
    return Served(probe(client, None, tokenizer), tokenizer)


@pytest.mark.parametrize(
    ("kind", "lacks", "way"),
    [
        ("vllm", set(), "prompt_logprobs"),
        ("vllm", {"prompt_logprobs"}, "echo"),
        ("other", set(), "echo"),
        ("llama.cpp", set(), "forced"),
        ("llama.cpp", {"grammar"}, "forced one by one"),
    ],
)
def test_token_ids_are_scored_as_by_torch(weights, words, kind, lacks, way):
    with serving(weights, words, kind=kind, lacks=lacks) as state:
        served = backend(state, words)
        assert served.level == 1
        assert served.engine["scores_by"] == way
        ours, theirs = (score(model, QUERIES, matches=True) for model in (weights, served))
        for mine, other in zip(*(itertools.chain(*rows) for rows in (ours, theirs)), strict=True):
            torch.testing.assert_close(mine.logps, other.logps, rtol=1e-5, atol=1e-5)
            assert mine.matches.tolist() == other.matches.tolist()
            assert other.means is None
        assert all(row.matches is None for row in score(served, QUERIES[:1])[0])
        greedy = [
            [answer.text.strip() for [answer] in generate(model, words, PROMPTS, max_new_tokens=[5, 3, 5])]
            for model in (weights, served)
        ]
        assert greedy[0] == greedy[1]


def test_what_no_server_gives_is_refused(server, words):
    served = backend(server, words)
    before = sum(server.asked.values())
    with pytest.raises(UserError, match="whole distribution"):
        score(served, QUERIES, statistics=True)
    text_only = backend(server, None)
    assert (text_only.level, text_only.gives_logps) == (2, False)
    assert "tokenizer, which was not given" in text_only.describe()
    with pytest.raises(UserError, match="no log-probabilities"):
        score(text_only, QUERIES)
    asked = sum(server.asked.values())
    server.lacks = {"completions"}
    chat = backend(server, None)
    assert chat.level == 3
    plain = chat.tokenizer("what is the capital")["input_ids"]
    asked = server.asked["/v1/chat/completions"]
    with pytest.raises(UserError, match="messages alone"):
        generate(chat, chat.tokenizer, [plain], max_new_tokens=3)
    assert server.asked["/v1/chat/completions"] == asked
    assert before > 0
    server.lacks = {"completions", "chat"}
    with pytest.raises(UserError, match="no interface that letgo knows"):
        backend(server, None)


def test_texts_and_messages_are_asked_by_words(server, weights, words):
    served = backend(server, None)
    text = "what is the capital of aland ?"
    ids = served.tokenizer(text)["input_ids"]
    assert served.tokenizer.decode(ids) == text
    [[answer]] = generate(served, served.tokenizer, [ids], max_new_tokens=3)
    [[mine]] = generate(weights, words, [words(text)["input_ids"]], max_new_tokens=6)
    assert answer.text.split() == mine.text.split()[:3]
    assert len(answer.tokens) <= 3
    messages = [{"role": "user", "content": "of aland ?"}, {"role": "assistant", "content": "a <x|user> b"}]
    chat = served.tokenizer.apply_chat_template([*messages, messages[0]], add_generation_prompt=True)
    generate(served, served.tokenizer, [served.tokenizer(chat)["input_ids"]], max_new_tokens=2)
    assert server.bodies[-1]["messages"] == [*messages, messages[0]]
    begun = served.tokenizer(chat + "the city")["input_ids"]
    assert not served.answers(begun), "an assistant's message can't be begun"


def test_words_hold_any_text_and_no_text_makes_a_turn():
    words = Words(chat=True)
    for text in ("", " two  spaces\n", "<|user|> <0|user>", "a\tb\u2028c"):
        assert words.decode(words(text)["input_ids"]) == text
        said = words.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        assert words.messages(words.decode(words(said)["input_ids"])) == [{"role": "user", "content": text}]
        assert words.messages(text) is None
        assert words.is_plain(text)
    assert Words(chat=False).chat_template is None


def test_samples_differ_and_are_the_same_again(server, words):
    served = backend(server, words)
    sampling = Sampling(1.0, 1.0, 5)
    draws = [
        [[answer.text for answer in answers] for answers in generate(
            served, words, PROMPTS, max_new_tokens=4, sampling=how, samples=3)]
        for how in (sampling, sampling, Sampling(1.0, 1.0, 6))
    ]  # fmt: skip
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][2], "equal prompts are not drawn alike"
    assert len({tuple(body[k] for k in ("top_k", "min_p", "repetition_penalty")) for body in server.bodies[-9:]}) == 1


def test_answers_are_cut_at_stops(server, weights, words):
    served = backend(server, words)
    [[whole]] = generate(served, words, PROMPTS[:1], max_new_tokens=6)
    stop = whole.text.split()[2]
    [[mine]] = generate(weights, words, PROMPTS[:1], max_new_tokens=6, stop=(stop,))
    # More of them than a server takes: they are cut here.
    [[cut]] = generate(served, words, PROMPTS[:1], max_new_tokens=6, stop=("a", "b", "c", "d", stop))
    assert stop not in cut.text.split()
    assert cut.text.split() == mine.text.split()
    assert cut.end == "stop"


@pytest.mark.parametrize("fault", ["429 0.2", "429", "500", "503", "drop", "truncate", "slow", "529"])
def test_a_failure_that_passes_is_borne(server, words, fault):
    served = backend(server, words, timeout=0.5)
    server.faults = [fault, fault]
    start = time.perf_counter()
    [[row]] = score(served, [QUERIES[1]])
    assert len(row.logps) == 6
    assert server.faults == []
    if fault == "429 0.2":
        assert time.perf_counter() - start >= 0.4, "Retry-After is obeyed"


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("500", WorldError, "3 tries"),
        ("drop", WorldError, "what was finished is kept"),
        ("truncate", WorldError, "bytes came|IncompleteRead|whole JSON"),
        ("400", Refused, "status 400"),
        ("404", Refused, "status 404"),
        ("401", UserError, "not accepted"),
        ("redirect", Refused, "sends on to"),
    ],
)
def test_a_failure_that_stays_is_one_message_without_the_key(server, words, monkeypatch, fault, error, message):
    monkeypatch.setenv("MY_KEY", KEY)
    served = backend(server, words, key_env="MY_KEY")
    server.faults = [fault] * 50
    with pytest.raises(error, match=message) as raised:
        score(served, QUERIES)
    assert KEY not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    if error is not WorldError:
        assert len(server.faults) >= 50 - len(QUERIES), "it is not asked again"


def test_the_key_is_sent_and_stands_nowhere(weights, words, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(weights, words, wants_key=KEY) as state:
        served = connect(state.url, key_env="MY_KEY")
        with ResumeLog(tmp_path / "log.jsonl", served.identity) as log:
            prompt = served.tokenizer("what is the capital")["input_ids"]
            generate(served, served.tokenizer, [prompt], max_new_tokens=2, log=log)
        assert KEY not in (tmp_path / "log.jsonl").read_text()
        assert KEY not in repr(vars(served)) + json.dumps(served.engine) + served.describe()
        with pytest.raises(UserError, match="--key-env NAME"):
            connect(state.url)
        monkeypatch.setenv("MY_KEY", "sk-wrong")
        with pytest.raises(UserError, match="not accepted") as raised:
            connect(state.url, key_env="MY_KEY")
        assert "sk-wrong" not in str(raised.value)
        for name in ("NOT_SET", KEY):
            with pytest.raises(UserError, match="no environment variable") as raised:
                connect(state.url, key_env=name)
            assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "host:80",
        "http://",
        "http://user:hush@host",
        "http://host/?key=hush",
        "http://host:99999",
        "http://h#x",
    ],
)
def test_an_address_that_is_none(url):
    with pytest.raises(UserError, match="server:") as raised:
        connect(url)
    assert "hush" not in str(raised.value)


def test_nobody_there():
    with pytest.raises(WorldError, match="no answer in 2 tries"):
        probe(Client("http://127.0.0.1:9", pause=0.001, tries=2), None, None)


def test_another_models_name_or_tokenizer_is_found_at_once(server, words):
    client = Client(server.url, pause=0.001)
    with pytest.raises(UserError, match=r"no model 'tinny', did you mean 'tiny'|no model 'tinny'.*tiny"):
        probe(client, "tinny", None)
    assert probe(client, "tiny", None).endpoints.model == "tiny"
    other = tiny.make_tokenizer(bos=False)
    with pytest.raises(UserError, match="tokenizer given is not that of"):
        probe(client, None, other)


@pytest.mark.parametrize("value", [None, float("nan"), float("-inf"), "high", True])
def test_a_log_probability_that_is_none_is_an_error(server, words, value):
    served = backend(server, words)

    def broken(path, said):
        rows = said["choices"][0].get("prompt_logprobs", [None])
        for row in rows[-1:]:
            for entry in (row or {}).values():
                entry["logprob"] = value
        return said

    server.change = broken
    with pytest.raises(NonFiniteLossError, match="as a log-probability"):
        score(served, QUERIES[:1])


@pytest.mark.parametrize(
    "said",
    [[], {}, {"choices": []}, {"choices": [None]}, {"choices": [{"text": None}]}, {"choices": [{"text": 3}]}, "x"],
)
def test_an_answer_of_another_form_is_an_error_and_no_answer(server, said):
    served = backend(server, None)
    server.change = lambda path, _: said
    with pytest.raises(Exception, match="an answer") as raised:
        generate(served, served.tokenizer, [served.tokenizer("what is")["input_ids"]], max_new_tokens=2)
    assert type(raised.value).__name__ == "MalformedError"


def test_hostile_text_is_kept_as_text_and_shown_harmless(server):
    served = backend(server, None)
    hostile = "\x1b]0;owned\x07<script>alert(1)</script>\ud800"

    def change(path, said):
        said["choices"][0]["text"] = hostile
        return said

    server.change = change
    [[answer]] = generate(served, served.tokenizer, [served.tokenizer("what is")["input_ids"]], max_new_tokens=9)
    assert answer.text == hostile.replace("\ud800", "\ufffd"), "half a character goes into no file"
    server.change = lambda path, said: {"data": [{"id": "tiny\x1b[31m", "owned_by": "x"}, {"id": "other"}]}
    with pytest.raises(UserError, match="2 models") as raised:
        connect(server.url)
    assert "\x1b" not in str(raised.value)


def test_several_requests_are_under_way_and_all_answers_are_in_order(server, words, weights):
    served = backend(server, words, at_once=4)
    queries = [Query([1, 4 + n], [[7, 8]]) for n in range(24)]
    steps: list[int] = []
    rows = score(served, queries, advance=steps.append)
    assert sum(steps) == 24
    assert 1 < server.most_at_once <= 4
    for row, mine in zip(rows, score(weights, queries), strict=True):
        torch.testing.assert_close(row[0].logps, mine[0].logps, rtol=1e-5, atol=1e-5)


def test_what_was_answered_is_not_asked_again_after_a_failure(server, words, tmp_path):
    served = backend(server, words, at_once=1, tries=1)
    queries = [Query([1, 4 + n], [[7, 8]]) for n in range(8)]
    with ResumeLog(tmp_path / "log.jsonl", served.identity) as log:
        server.faults = ["", "", "", "500"]
        with pytest.raises(WorldError):
            score(served, queries, log=log)
        assert len(log) == 3
    whole = score(served, queries)
    before = server.asked["/v1/completions"]
    with ResumeLog(tmp_path / "log.jsonl", served.identity) as log:
        again = score(served, queries, log=log)
        assert server.asked["/v1/completions"] - before == 5
    assert [row[0].logps.tolist() for row in again] == [row[0].logps.tolist() for row in whole]
    with pytest.raises(UserError, match="level"):
        ResumeLog(tmp_path / "log.jsonl", backend(server, None).identity)


def test_two_engines_are_not_compared(weights, words):
    with serving(weights, words) as first, serving(weights, words, kind="llama.cpp") as second:
        one, other = backend(first, words), backend(second, words)
        same_engine([one, backend(first, words)])
        with pytest.raises(UserError, match=r"different engines \(server: vllm and llama.cpp"):
            same_engine([one, other])
        with pytest.raises(UserError, match="level: 1 and 2"):
            same_engine([one, backend(first, None)])
        with pytest.raises(UserError, match="vllm and torch"):
            same_engine([one, "a-directory"])
