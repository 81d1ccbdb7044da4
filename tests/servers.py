"""A small server of one model in memory that speaks as others do, and fails in the ways in which servers do: vLLM
(`/v1/completions` with `prompt_logprobs` and token ids), OpenAI's older `echo`, llama.cpp's `/completion`, and chat."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from letgo.benchmarks.engine.general_text import general_paragraphs

OWNERS = {"vllm": "vllm", "llama.cpp": "llamacpp", "other": "someone"}
INTERFACES = {
    "vllm": {"prompt_logprobs", "echo", "completions", "chat", "tokenize"},
    "llama.cpp": {"forced", "grammar", "completions", "chat", "tokenize"},
    "other": {"echo", "completions", "chat"},
}


@pytest.fixture
def little_prose(monkeypatch):
    """Each general text costs a continuation of forty tokens, a request a text."""
    few_texts(monkeypatch)


def few_texts(monkeypatch):
    """Let a user's rows be scored with two general texts."""
    few = general_paragraphs(held_out=True)[:2]
    monkeypatch.setattr("letgo.benchmarks.user_rows.general_paragraphs", lambda held_out: few)


@dataclass
class Server:
    """What it serves and how it behaves; `faults` are taken from the front, one a POST."""

    model: Any
    tokenizer: Any
    kind: str = "vllm"
    name: str = "tiny"
    lacks: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    wants_key: str | None = None
    change: Any = None
    """Called with a path and the answer before it is sent; returns what is sent."""
    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)
    counting: Any = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        with self.counting:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self.counting:
                self.at_once -= 1

    def has(self, interface: str) -> bool:
        return interface in INTERFACES[self.kind] - self.lacks

    @torch.no_grad()
    def logps(self, tokens: list[int]) -> torch.Tensor:
        """Log-probabilities of what follows each token, (tokens, vocabulary)."""
        with self.lock:
            return self.model(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(-1)

    def write(self, tokens: list[int], body: dict[str, Any], room: int) -> tuple[list[int], bool]:
        """Greedy or sampled tokens, without the end token; and whether it ended by itself."""
        generator = torch.Generator().manual_seed(int(body.get("seed", 0)))
        written: list[int] = []
        for _ in range(room):
            last = self.logps(tokens + written)[-1]
            if body.get("temperature", 1.0) == 0:
                token = int(last.argmax())
            else:
                token = int(torch.multinomial((last / body["temperature"]).softmax(-1), 1, generator=generator))
            if token == self.tokenizer.eos_token_id:
                return written, True
            written.append(token)
        return written, False

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        tokens = list(prompt) if isinstance(prompt, list) else self.tokenizer(prompt)["input_ids"]
        written, ended = self.write(tokens, body, body["max_tokens"])
        choice: dict[str, Any] = {"index": 0, "text": " " + self.tokenizer.decode(written)}
        for stop in body.get("stop") or ():
            choice["text"] = choice["text"].partition(stop)[0]
        choice["finish_reason"] = "stop" if ended else "length"
        if body.get("return_token_ids") and self.kind == "vllm":
            choice["token_ids"] = written + ([self.tokenizer.eos_token_id] if ended else [])
        if "prompt_logprobs" in body and self.has("prompt_logprobs"):
            choice["prompt_logprobs"] = self._prompt_logprobs(tokens, body["prompt_logprobs"])
        if body.get("echo") and self.has("echo"):
            every = tokens + written
            rows = self.logps(every)
            choice["logprobs"] = {
                "tokens": [self.tokenizer.decode([token]) for token in every],
                "token_logprobs": [None, *(float(rows[i, t]) for i, t in enumerate(every[1:]))],
                "top_logprobs": [None, *({"top": float(row.max())} for row in rows[:-1])],
            }
        return {"object": "text_completion", "model": self.name, "choices": [choice]}

    def _prompt_logprobs(self, tokens: list[int], most: int) -> list[Any]:
        rows, said = self.logps(tokens), [None]
        for place, token in enumerate(tokens[1:]):
            given = {token, *rows[place].topk(most).indices.tolist()} if most else {token}
            said.append({
                str(t): {"logprob": float(rows[place, t]), "rank": int((rows[place] > rows[place, t]).sum()) + 1}
                for t in given
            })  # fmt: skip
        return said

    def forced(self, body: dict[str, Any]) -> dict[str, Any]:
        """llama.cpp: tokens that it is forced to write, with the log-probabilities of the model as it is."""
        if "grammar" in body:
            if not self.has("grammar"):
                raise ValueError("failed to parse grammar")
            tokens = [int(number) for number in re.findall(r"<\[(\d+)\]>", body["grammar"])]
            if self.tokenizer.eos_token_id in tokens:
                raise ValueError("Unexpected empty grammar stack after accepting piece")
        else:
            tokens = [token for token, _ in body["logit_bias"]]
        tokens = tokens[: body["n_predict"]]
        rows = self.logps([*body["prompt"], *tokens])[len(body["prompt"]) - 1 : -1]
        return {
            "content": self.tokenizer.decode(tokens),
            "completion_probabilities": [
                {
                    "id": token,
                    "logprob": float(row[token]),
                    "top_logprobs": [{"id": int(row.argmax()), "logprob": float(row.max())}],
                }
                for token, row in zip(tokens, rows, strict=True)
            ],
        }

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        text = "".join(f"Question: {m['content']}\nAnswer:" for m in body["messages"] if m["role"] == "user")
        written, ended = self.write(self.tokenizer(text)["input_ids"], body, body["max_tokens"])
        message = {"role": "assistant", "content": self.tokenizer.decode(written)}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop" if ended else "length"}]}

    def answer(self, path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        if path == "/v1/models":
            return {"data": [{"id": self.name, "owned_by": OWNERS[self.kind], "max_model_len": 64}]}
        if path == "/version":
            return {"version": "0.test"}
        if path == "/props":
            return {"build_info": "b0-test"}
        if body is None:
            return None
        if path == "/tokenize" and self.has("tokenize"):
            return {"tokens": self.tokenizer(body.get("prompt") or body["content"])["input_ids"]}
        if path == "/v1/completions" and self.has("completions"):
            return self.completions(body)
        if path == "/completion" and self.has("forced"):
            return self.forced(body)
        if path == "/v1/chat/completions" and self.has("chat"):
            return self.chat(body)
        return None


class _Handler(BaseHTTPRequestHandler):
    server_version = "fake"
    state: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.bodies.append(body)
        fault = self.state.faults.pop(0) if self.state.faults else ""
        self._serve(body, fault)

    def _serve(self, body: dict[str, Any] | None, fault: str = "") -> None:
        state = self.state
        state.asked[self.path] += 1
        if state.wants_key is not None and self.headers.get("Authorization") != f"Bearer {state.wants_key}":
            return self._send(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
        if fault == "drop":
            return self.connection.close()
        if fault == "slow":
            time.sleep(1.0)
        if fault == "redirect":
            return self._send(307, {}, {"Location": "http://elsewhere.invalid/"})
        if fault[:3].isdigit():
            code, _, after = fault.partition(" ")
            said = {"error": {"message": f"\x1b[31mtrouble\x1b[0m {self.headers.get('Authorization')}"}}
            return self._send(int(code), said, {"Retry-After": after} if after else {})
        try:
            # Until it is sent: a client that has the answer may ask again before this thread goes on.
            with state.under_way():
                said = state.answer(self.path, body)
        except ValueError as error:
            return self._send(500, {"error": {"message": str(error)}})
        if said is None:
            return self._send(404, {"error": {"message": "no such path"}})
        if state.change is not None:
            said = state.change(self.path, said)
        return self._send(200, said, cut=fault == "truncate")

    def _send(self, code: int, said: Any, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        raw = json.dumps(said).encode()
        with contextlib.suppress(OSError):
            self.send_response(code)
            for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw[: len(raw) // 2] if cut else raw)


@contextlib.contextmanager
def serving(model: Any, tokenizer: Any, **settings: Any) -> Iterator[Server]:
    """A server of a model, on a port of this machine, for the block."""
    state = Server(model, tokenizer, **settings)
    handler = type("Handler", (_Handler,), {"state": state})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
