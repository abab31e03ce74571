"""An OpenAI-compatible server that is asked for log-probabilities: vLLM, SGLang, llama.cpp's, llama-cpp-python's.

They differ in what they take and give, so each way of asking is tried in order until one is answered.
"""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from subeight.errors import InputError

TOP = 5  # log-probabilities of the next token that are asked for: what every server gives
Prompt = Sequence[int] | str


@dataclass(frozen=True)
class Way:
    """How a prompt is scored: as token ids or as text; all its tokens at once (echo), or only the next one."""

    ids: bool
    echo: bool


WAYS = (
    Way(ids=True, echo=True),  # vLLM, SGLang
    Way(ids=True, echo=False),  # llama.cpp's llama-server, which knows no echo
    # llama-cpp-python's server takes no ids, and its echo is off by one place where the model has no BOS; it must be
    # started with --logits_all true, or it gives no log-probabilities.
    Way(ids=False, echo=False),
)


@dataclass(frozen=True)
class Heard:
    """What a server said: the log-probability of each token of the prompt (None: not said), the largest ones of the
    next token in falling order, and how many tokens it made of the prompt."""

    tokens: tuple[float | None, ...]
    top: tuple[float, ...]
    prompt_tokens: int | None


class RefusedError(Exception):
    """The server does not do what it was asked; the message says why."""


class Server:
    """A server by its URL, with or without `/v1`.

    Raises:
        InputError: of every call: nothing answers there.
    """

    def __init__(self, url: str, timeout: float = 120) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--served was given {url!r}; give the URL of a server, such as http://localhost:8000/v1.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout = timeout

    @cached_property
    def model(self) -> str:
        """The name of the first model that is served."""
        try:
            return str(self._ask("models", None)["data"][0]["id"])
        except (RefusedError, KeyError, IndexError, TypeError):
            return "default"

    def completion(self, prompt: Prompt, *, echo: bool) -> Heard:
        """Asks /v1/completions about a prompt; raises RefusedError where it gives no such log-probabilities."""
        given = prompt if isinstance(prompt, str) else list(prompt)
        request = {"model": self.model, "prompt": given, "max_tokens": 1, "temperature": 0, "logprobs": TOP}
        answer = self._ask("completions", {**request, "echo": True} if echo else request)
        entries = _entries(answer)
        generated = int((answer.get("usage") or {}).get("completion_tokens", 1))
        if not echo:
            if not isinstance(_logprobs(answer), Mapping) or (entries and not entries[-1][1]):
                raise RefusedError("it gives no log-probabilities of the next token")
            # Where the text ends there, llama-cpp-python says nothing about the end mark.
            return Heard((), entries[-1][1] if entries else (), _prompt_tokens(answer))
        said = entries[: len(entries) - generated]
        if len(said) < 2 or (not isinstance(prompt, str) and len(said) < len(prompt) - 2):
            raise RefusedError("it does not score the tokens of the prompt (echo)")
        return Heard(tuple(value for value, _ in said), entries[-1][1] if generated else (), _prompt_tokens(answer))

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> Heard:
        """Asks /v1/chat/completions for the first token of its answer."""
        request = {"model": self.model, "messages": [dict(message) for message in messages], "max_tokens": 1}
        answer = self._ask("chat/completions", {**request, "temperature": 0, "logprobs": True, "top_logprobs": TOP})
        entries = _entries(answer)
        return Heard((), entries[0][1] if entries else (), _prompt_tokens(answer))

    def _ask(self, what: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/{what}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace").strip()
            raise RefusedError(f"/v1/{what} answers {error.code} ({text[:160]})") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(
                f"No server answers at {self.url} ({reason or type(error).__name__}); start it, or correct --served."
            ) from error
        except (ValueError, TypeError) as error:
            raise RefusedError(f"/v1/{what} does not answer in JSON") from error


def _prompt_tokens(answer: Mapping[str, Any]) -> int | None:
    found = (answer.get("usage") or {}).get("prompt_tokens")
    return None if found is None else int(found)


def _logprobs(answer: Mapping[str, Any]) -> Any:
    return (answer.get("choices") or [{}])[0].get("logprobs")


def _entries(answer: Mapping[str, Any]) -> list[tuple[float | None, tuple[float, ...]]]:
    """For each token of the answer its log-probability and the largest ones at its place, in either notation."""
    given = _logprobs(answer) or {}
    if given.get("content"):  # the chat's notation, which llama-server also uses for completions
        listed = [(token.get("logprob"), token.get("top_logprobs") or ()) for token in given["content"]]
        return [(value, _falling(other.get("logprob") for other in top)) for value, top in listed]
    values = given.get("token_logprobs") or []
    tops = given.get("top_logprobs") or [None] * len(values)
    return [
        (value, _falling((top or {}).values() if isinstance(top, Mapping) else ()))
        for value, top in zip(values, tops, strict=False)
    ]


def _falling(values: Any) -> tuple[float, ...]:
    return tuple(sorted((float(value) for value in values if value is not None), reverse=True)[:TOP])
