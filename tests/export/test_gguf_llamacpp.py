"""llama.cpp itself on tiny models of every family that is written: its logits are transformers', its token ids too."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight.export.gguf import write_gguf
from subeight.models.model import Model
from tests.export.gguf_models import CONFIGS, plain

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "gguf_logits.py"
TEXTS = ["a plain line, 12 345", "<|im_start|>user\nhello<|im_end|>\n", "  two  spaces\n\n\tand tabs"]


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get("LLAMA_CPP_PYTHON") or (sys.executable if find_spec("llama_cpp") else None)
    if found is None:
        pytest.skip("llama-cpp-python is not installed; LLAMA_CPP_PYTHON may name an interpreter that has it")
    return found


def llama(python: str, file: Path, rows: list[list[int]], texts: list[str]) -> tuple[torch.Tensor, dict]:
    request, result = file.with_suffix(".json"), file.with_suffix(".npy")
    request.write_text(json.dumps({"rows": rows, "texts": texts}), encoding="utf-8")
    command = [python, str(SCRIPT), str(file), str(request), str(result)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return torch.from_numpy(np.load(result)), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.real
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_logits_and_token_ids(name: str, python: str, tmp_path: Path) -> None:
    model = plain(name, tmp_path / "plain")
    write_gguf(model, (), tmp_path / "model.gguf", quiet=True)
    ids = torch.randint(4, 320, (2, 40), generator=torch.Generator().manual_seed(0))
    found, answer = llama(python, tmp_path / "model.gguf", ids.tolist(), TEXTS)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = made(input_ids=ids, use_cache=False).logits
    # llama.cpp keeps keys and values in 16 bits
    assert float((found - expected).abs().max()) < 5e-3 * float(expected.std())
    tokenizer = model.tokenizer()
    assert answer["tokens"] == [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert answer["template"] == tokenizer.chat_template


@pytest.mark.real
def test_scores_of_sentencepiece(real_model, python: str, tmp_path: Path) -> None:
    model = Model(real_model("stories260K"))
    write_gguf(model, (), tmp_path / "model.gguf", quiet=True)
    texts = ["Once upon a time, there was a little girl.", "She said: 12 cats!", " <s>Tom</s> Ben é"]
    _, answer = llama(python, tmp_path / "model.gguf", [], texts)
    assert answer["tokens"] == [model.tokenizer()(text, add_special_tokens=False).input_ids for text in texts]
