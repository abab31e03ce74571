"""llama.cpp's logits and token ids of a GGUF file.

ENV/bin/python gguf_logits.py FILE.gguf REQUEST.json LOGITS.npy --threads 1

The request is `{"rows": [[ids], ...], "texts": ["...", ...]}` with rows of one length; LOGITS.npy becomes float32
[rows, length, vocabulary]. The answer, a line of JSON on standard output: `{"tokens": [[ids]], "template": "..."}`, the
ids of each text with its special tokens read as such, and the chat template that the file brings.
"""

import argparse
import json
from pathlib import Path

import llama_cpp
import numpy as np


def main() -> None:
    """Loads the file once, and answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("request", type=Path)
    parser.add_argument("logits", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    asked = json.loads(given.request.read_text(encoding="utf-8"))
    longest = max((len(row) for row in asked["rows"]), default=1)
    model = llama_cpp.Llama(
        str(given.file),
        n_ctx=max(longest, 32),
        n_batch=max(longest, 32),
        n_threads=given.threads,
        n_threads_batch=given.threads,
        logits_all=True,
        verbose=False,
    )
    np.save(given.logits, np.stack([logits(model, row) for row in asked["rows"]]) if asked["rows"] else np.zeros(0))
    tokens = [model.tokenize(text.encode(), add_bos=False, special=True) for text in asked["texts"]]
    print(json.dumps({"tokens": tokens, "template": model.metadata.get("tokenizer.chat_template")}))


def logits(model: llama_cpp.Llama, row: list[int]) -> np.ndarray:
    """The logits [length, vocabulary] of one row of ids."""
    model.reset()
    model.eval(row)
    return np.array(model.scores[: len(row)], dtype=np.float32)


if __name__ == "__main__":
    main()
