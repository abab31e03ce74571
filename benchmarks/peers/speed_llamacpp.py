"""llama.cpp reads a prompt and writes tokens, one round for every line on standard input.

ENV/bin/python speed_llamacpp.py FILE.gguf --threads 2 --type q4_0

The file is requantized to the type first (as it is, without one). Each answer is a line of JSON: seconds of the prompt,
of each token after it, and bytes of the file that was run.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import llama_cpp

TYPES = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def main() -> None:
    """Loads once, then answers lines of JSON: `{"prompt": [ids], "tokens": 32}`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--type", choices=TYPES)
    given = parser.parse_args()
    with TemporaryDirectory() as scratch:
        file = requantized(given.file, Path(scratch) / "model.gguf", given.type) if given.type else given.file
        model = llama_cpp.Llama(
            str(file), n_ctx=2048, n_batch=512, n_threads=given.threads, n_threads_batch=given.threads, verbose=False
        )
        for line in sys.stdin:
            asked = json.loads(line)
            answer = {**timed(model, asked["prompt"], asked["tokens"]), "bytes": file.stat().st_size}
            print(json.dumps(answer), flush=True)


def requantized(source: Path, out: Path, kind: str) -> Path:
    """The same model in another type of llama.cpp's."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = TYPES[kind], True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), settings):
        sys.exit(f"llama.cpp did not requantize {source}")
    return out


def timed(model: llama_cpp.Llama, prompt: list[int], tokens: int) -> dict[str, object]:
    """Seconds of one prompt and of each token."""
    model.reset()
    began = time.perf_counter()
    model.eval(prompt)
    prefill, decode = time.perf_counter() - began, []
    for number in range(tokens):
        began = time.perf_counter()
        model.eval([prompt[number % len(prompt)]])
        decode.append(time.perf_counter() - began)
    return {"prefill": prefill, "decode": decode}


if __name__ == "__main__":
    main()
