"""A server of a tiny model that answers as vLLM does, or as one that takes no ids or knows no echo; with faults."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Manners:
    """What the server takes, and what is wrong with it."""

    ids: bool = True
    echo: bool = True
    content: bool = False  # completions in the chat's notation, as llama-server gives them
    logprobs: bool = True
    bos: int = 0  # of a text: that many more, or -1: the tokenizer's own is dropped
    chat_bos: int = 0
    template: str | None = None
    wrong: float = 1.0  # what logits are multiplied with
    words: int = 0  # tokens too many in a text


class Answering:
    """One model, its tokenizer, and the manners of the server."""

    def __init__(self, model: Any, tokenizer: Any, manners: Manners) -> None:
        self.model, self.tokenizer, self.manners = model, tokenizer, manners

    def completion(self, body: dict[str, Any]) -> dict[str, Any] | None:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            ids = self._bos(self.tokenizer(prompt)["input_ids"], self.manners.bos) + [5] * self.manners.words
        elif self.manners.ids:
            ids = prompt
        else:
            return None
        said = self._said(ids)
        values, tops = [], []
        if body.get("echo") and self.manners.echo:
            values = [None, *said[range(len(ids) - 1), ids[1:]].tolist()]
            tops = [None, *(self._top(row) for row in said[:-1])]
        values.append(float(said[-1].max()))
        tops.append(self._top(said[-1]))
        logprobs = {"token_logprobs": values, "top_logprobs": tops}
        return self._answer(len(ids), self._content(said[-1]) if self.manners.content else logprobs)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        options = {"chat_template": self.manners.template} if self.manners.template else {}
        text = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True, **options
        )
        ids = self._bos(self.tokenizer(text, add_special_tokens=False)["input_ids"], self.manners.chat_bos)
        return self._answer(len(ids), self._content(self._said(ids)[-1]))

    def _bos(self, ids: list[int], more: int) -> list[int]:
        return ids[1:] if more < 0 else [self.tokenizer.bos_token_id] * more + ids

    @torch.no_grad()
    def _said(self, ids: list[int]) -> Tensor:
        return (self.model(torch.tensor([ids])).logits[0] * self.manners.wrong).log_softmax(-1)

    @staticmethod
    def _top(row: Tensor) -> dict[str, float]:
        found = row.topk(5)
        return {str(index): value for index, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)}

    def _content(self, row: Tensor) -> dict[str, Any]:
        top = [{"token": token, "logprob": value} for token, value in self._top(row).items()]
        return {"content": [{**top[0], "top_logprobs": top}]}

    def _answer(self, tokens: int, logprobs: dict[str, Any]) -> dict[str, Any]:
        return {
            "choices": [{"logprobs": logprobs if self.manners.logprobs else None}],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 1},
        }


@contextmanager
def serving(model: Any, tokenizer: Any, **manners: Any) -> Iterator[str]:
    """The URL of the server, while it lasts."""
    answering = Answering(model, tokenizer, replace(Manners(), **manners))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "tiny"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            work = answering.chat if self.path.endswith("/chat/completions") else answering.completion
            made = work(body)
            self._send(422 if made is None else 200, made or {"error": "a string is wanted"})

        def _send(self, status: int, content: dict[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
