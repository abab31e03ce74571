"""Trains the two small models that the fault benchmark carries: a dense Llama and a Mixtral of eight experts.

    python benchmarks/faults/train.py dense|mixtral [--text ../shared/data/text] [--threads 1]

They are small enough for git and real enough to break: they have learned English, code, German and chat, each text
behind a BOS, from the packaged calibration text, a novel, CPython's library and Faust. The packaged evaluation text is
never trained on; the bits per byte on it are printed and written beside the model.
"""

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
BUILTIN = HERE.parents[1] / "src" / "subeight" / "text" / "builtin"
TEXT = HERE.parents[2] / "shared" / "data" / "text"
SPECIAL = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CATEGORIES = {"prose": 0.26, "code": 0.26, "german": 0.28, "chat": 0.20}  # shares of the training windows
VOCABULARY, WINDOW = 768, 160
COMMON = {
    "vocab_size": VOCABULARY,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
CONFIGS: dict[str, Any] = {
    "dense": lambda: transformers.LlamaConfig(
        **COMMON, hidden_size=128, intermediate_size=256, num_hidden_layers=6, head_dim=32
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **COMMON,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        head_dim=16,
        num_local_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
        output_router_logits=False,
    ),
}
ROWS = {"dense": 12, "mixtral": 20}
STEPS = {"dense": 1600, "mixtral": 2200}
RATE = {"dense": 4e-3, "mixtral": 6e-3}


def main() -> None:
    """Trains one model, or both, and writes what it learned beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=list(CONFIGS))
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=None, help="end the schedule after about so many minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    documents = corpus(arguments.text)
    for name in arguments.models:
        make(name, documents, arguments.out / name, arguments.minutes)


def make(name: str, documents: dict[str, list[str]], directory: Path, minutes: float | None) -> None:
    """One model: tokenizer, training, checkpoint in bfloat16, bits per byte."""
    tokenizer = make_tokenizer(documents)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)
    ids = {category: [encode(text, tokenizer) for text in texts] for category, texts in documents.items()}
    started = time.perf_counter()
    steps = train(model, windows(ids, 0, ROWS[name]), STEPS[name], RATE[name], minutes=minutes)
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    learned = {
        "bits_per_byte": bits_per_byte(model.float(), tokenizer),
        "steps": steps,
        "seconds": round(time.perf_counter() - started),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    (directory / "training.json").write_text(json.dumps(learned, indent=1) + "\n", encoding="utf-8")
    print(name, json.dumps(learned))


def train(
    model: Any, batches: Iterator[Tensor], steps: int, rate: float, minutes: float | None = None, warm: int = 40
) -> int:
    """AdamW with a cosine schedule; returns the steps made. With `minutes`, the schedule is cut to fit the time."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.97))
    model.train()
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = True  # the loss that balances the experts
    started, step = time.perf_counter(), 0
    while step < steps:
        ids = next(batches)  # [rows, window]
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warm) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if minutes and step == 60:
            steps = min(steps, int(step * minutes * 60 / (time.perf_counter() - started)))
        if step % 50 == 0:
            print(f"step {step}/{steps} loss {loss.item():.3f} {time.perf_counter() - started:.0f} s", flush=True)
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = False
    model.eval()
    return step


def finetuned(model: Any, tokenizer: Any, steps: int, seed: int, rate: float = 1e-3, rows: int = 8) -> Any:
    """A short fine-tune of a model, in place, on the packaged calibration text in an order of `seed`."""
    ids = {name: [encode(text, tokenizer) for text in texts] for name, texts in builtin("calibration").items()}
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    train(model, windows(ids, seed + 1, rows, (tokenizer.bos_token_id, tokenizer.eos_token_id)), steps, rate, warm=5)
    torch.random.set_rng_state(before)
    return model


def corpus(folder: Path) -> dict[str, list[str]]:
    """Documents of each category: the packaged calibration text, and three public texts, with chats made of them."""
    found = builtin("calibration")
    novel = (folder / "longctx" / "moby_dick.txt").read_text(encoding="utf-8")
    novel = re.sub(r" (['’]) (s|t|ll|re|d|ve)\b", r"\1\2", novel).replace(" n't", "n't")
    novel = re.sub(r" ([,.;:!?)])", r"\1", novel).replace("( ", "(").replace(" - ", "-")
    library = (folder / "code" / "python_stdlib.txt").read_text(encoding="utf-8")
    drama = re.sub(r"\n{3,}", "\n\n", (folder / "multilingual" / "de_faust.txt").read_text(encoding="utf-8"))
    for category, text in (("prose", novel), ("code", library), ("german", drama)):
        found[category] += pieces(text, 6000)
    chooser = random.Random(0)
    for category in ("prose", "german", "code"):
        found["chat"] += [conversation(piece, category, chooser) for piece in pieces("\n".join(found[category]), 500)]
    return found


def builtin(part: str) -> dict[str, list[str]]:
    """The packaged text by category, conversations in the models' own template (without its BOS)."""
    found: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for line in (BUILTIN / f"{part}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row.get("text") or "".join(turn(m["role"], m["content"]) for m in row["messages"])
        found[row["category"]].append(text)
    return found


def turn(role: str, content: str) -> str:
    """One turn of a conversation as TEMPLATE writes it."""
    return f"<|{role}|>\n{content}<|end|>\n"


def conversation(piece: str, category: str, chooser: random.Random) -> str:
    """A passage as a conversation: its first part asked about, the rest as the answer."""
    asks = {
        "prose": ("Please continue: ", "What comes next? ", "Go on with this text. "),
        "german": ("Bitte weiter: ", "Wie geht es weiter? ", "Schreibe das fort. "),
        "code": ("Complete this code: ", "What follows here? ", "Finish the function. "),
    }
    cut = piece.find(" ", len(piece) // 3)
    return turn("user", chooser.choice(asks[category]) + piece[:cut]) + turn("assistant", piece[cut:].strip())


def pieces(text: str, characters: int) -> list[str]:
    """A long text in parts of about so many characters, cut at line ends."""
    parts, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= characters:
            parts.append("".join(lines))
            lines, size = [], 0
    return parts


def make_tokenizer(documents: dict[str, list[str]]) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE trained on the same text, a third of it; it puts a BOS first and has a chat template."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator((text[:450_000] for text in map("".join, documents.values())), trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[2:]
    )
    made.chat_template = TEMPLATE
    return made


def encode(text: str, tokenizer: Any) -> Tensor:
    """The ids of a text alone [n]."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def windows(ids: dict[str, list[Tensor]], seed: int, rows: int, ends: tuple[int, int] = (0, 1)) -> Iterator[Tensor]:
    """Batches [rows, WINDOW]: BOS, then a document from its start or from within, then EOS and the next one."""
    chooser, (bos, eos) = random.Random(seed), (torch.tensor([end]) for end in ends)
    names = list(CATEGORIES)
    weights = {name: [len(document) for document in documents] for name, documents in ids.items()}
    while True:
        batch = []
        for name in chooser.choices(names, [CATEGORIES[name] for name in names], k=rows):
            document = chooser.choices(ids[name], weights[name])[0]
            start = 0 if name == "chat" or chooser.random() < 0.2 else chooser.randrange(max(1, len(document) - 32))
            row = [bos, document[start:], eos]
            while sum(map(len, row)) < WINDOW:
                row += [bos, chooser.choice(ids[name]), eos]
            batch.append(torch.cat(row)[:WINDOW])
        yield torch.stack(batch)


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any) -> dict[str, float]:
    """Of the packaged evaluation text, by category, each document behind a BOS and cut at the window of training."""
    found = {}
    for category, texts in builtin("evaluation").items():
        nats = size = 0.0
        for text in texts:
            ids = torch.cat([torch.tensor([0]), encode(text, tokenizer)])[None, :WINDOW]
            nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            size += len(tokenizer.decode(ids[0, 1:]).encode())
        found[category] = round(nats / size / math.log(2), 3)
    return found


if __name__ == "__main__":
    main()
