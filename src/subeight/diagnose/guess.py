"""From which full-precision model a checkpoint was made, as its own metadata say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.modeling_gguf_pytorch_utils import read_field

from subeight.errors import InputError
from subeight.models.model import Model
from subeight.models.read.gguf import open_reader
from subeight.models.source import ALIAS

_GGUF = (
    "general.base_model.0.repo_url",
    "general.source.huggingface.repository",
    "general.source.url",
    "general.base_model.0.name",
)


def guess_baseline(candidate: Model) -> str:
    """The baseline's name: of our record, `_name_or_path`, a model card's `base_model`, or a GGUF's metadata.

    It is a claim, which the examination of the baseline checks.

    Raises:
        InputError: nothing is said, or only the checkpoint itself is named.
    """
    home = candidate.source.gguf or candidate.directory
    claims = [name for name in _claims(candidate) if name and Path(name).expanduser().resolve() != home.resolve()]
    here = [name for name in claims if name == ALIAS or Path(name).expanduser().exists()]
    hub = [name for name in claims if name.count("/") == 1 and not name.startswith((".", "~", "/"))]
    listed = (*here, *hub, *claims)
    if not listed:
        raise InputError(
            f"{candidate.label} does not say from which model it was made; give --baseline, the full-precision model."
        )
    return listed[0]


def _claims(candidate: Model) -> Iterator[str]:
    if candidate.source.gguf is not None:
        reader = open_reader(candidate.source.gguf)
        for key in _GGUF:
            if key in reader.fields:
                yield _hub_id(str(next(iter(read_field(reader, key)), "")))
        return
    yield from _of_record(candidate.directory / "record.json")
    yield str(getattr(candidate.config, "_name_or_path", "") or "")
    yield str(_json(candidate.directory / "config.json").get("_name_or_path") or "")
    yield from _of_card(candidate.directory / "README.md")


def _of_record(path: Path) -> Iterator[str]:
    subject = _json(path).get("subject") or {}
    for field in ("path", "model", "baseline"):
        if isinstance(subject.get(field), str):
            yield subject[field]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _of_card(path: Path) -> Iterator[str]:
    """`base_model` in the front matter of a model card: one name or a list."""
    if not path.is_file():
        return
    front = re.match(r"---\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    for found in re.finditer(
        r"^base_model:[ \t]*\n?[ \t]*(?:-[ \t]*)?([^\n#]+)", front[1] if front else "", re.MULTILINE
    ):
        yield found[1].strip().strip("'\"[]")


def _hub_id(name: str) -> str:
    return re.sub(r"^https?://huggingface\.co/", "", name).strip("/")
