"""Where text comes from: the packaged text, local files and directories, data sets of the hub.

`builtin:calibration` and `builtin:evaluation` are packaged with Subeight, written for it, disjoint and fixed.
Local text is read as it is: `.txt` (one document), `.jsonl` and `.parquet` (one document a row), and
directories of those, in the order of their names.
"""

import codecs
import json
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

import pyarrow
import pyarrow.parquet

from subeight.errors import TextError
from subeight.text.corpora import read_corpus
from subeight.text.rows import Document, document_of

BUILTIN = "builtin"
NAMES = ("builtin:calibration", "builtin:evaluation")
ALLOWED = (
    "builtin, builtin:calibration, builtin:evaluation, hf:NAME, "
    "a .txt, .jsonl or .parquet file, or a directory of those"
)


def read_documents(source: str | Path, part: str | None = None) -> list[Document]:
    """All documents of a source, in a fixed order; `part` is what plain `builtin` means here."""
    name = f"{BUILTIN}:{part}" if str(source) == BUILTIN and part is not None else str(source)
    if name.startswith("hf:"):
        documents = read_corpus(name)
    elif name in NAMES:
        documents = _builtin(name.removeprefix(f"{BUILTIN}:"))
    else:
        documents = _read_path(Path(source))
    if not documents:
        raise TextError(f"{name!r} holds no text: give a source with at least one document that is not blank")
    return documents


def name_of(source: str | Path) -> str:
    """What of a source belongs in a hash: names do; paths differ between machines and do not."""
    name = str(source)
    return name if name.startswith("hf:") or name in (*NAMES, "self") else "file"


def _builtin(part: str) -> list[Document]:
    packaged = resources.files("subeight.text") / "builtin" / f"{part}.jsonl"
    return _parse_jsonl(packaged.read_bytes(), f"builtin:{part}")


def _read_path(path: Path) -> list[Document]:
    if path.is_dir():
        return _read_directory(path)
    if not path.exists():
        raise TextError(f"there is no file or source {str(path)!r}: allowed are {ALLOWED}")
    if path.suffix.lower() not in READERS:
        raise TextError(
            f"{str(path)!r} is of an unknown kind {path.suffix!r}: allowed are {', '.join(READERS)}, "
            "rename or convert it"
        )
    return _read_file(path, path.name)


def _read_directory(path: Path) -> list[Document]:
    files = sorted(
        (file.relative_to(path).as_posix(), file)
        for file in path.rglob("*")
        if file.is_file() and file.suffix.lower() in READERS and not file.name.startswith(".")
    )
    if not files:
        raise TextError(f"the directory {str(path)!r} has no text in it: put files of {', '.join(READERS)} there")
    return [document for name, file in files for document in _read_file(file, name)]


def _read_file(path: Path, name: str) -> list[Document]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TextError(f"{str(path)!r} cannot be read ({error.strerror}): check its permissions") from error
    if not content.strip():
        raise TextError(f"{str(path)!r} is empty: give a file with text in it")
    return READERS[path.suffix.lower()](content, name)


def _decode(content: bytes, name: str) -> str:
    body = content.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + len(content) - len(body)
        raise TextError(
            f"{name!r} is not UTF-8: byte {offset} (0x{content[offset]:02x}) cannot be decoded, "
            "convert the file to UTF-8 (iconv -f ... -t utf-8)"
        ) from error


def _parse_text(content: bytes, name: str) -> list[Document]:
    document = document_of({"text": _decode(content, name)}, name, name)
    return [] if document is None else [document]


def _parse_jsonl(content: bytes, name: str) -> list[Document]:
    # split at line feeds only: str.splitlines would also cut at separators that JSON strings may hold
    lines = enumerate(_decode(content, name).split("\n"), start=1)
    rows = ((number, _parse_line(line, f"{name}, line {number}")) for number, line in lines if line.strip())
    return _documents(rows, name, "line")


def _parse_line(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise TextError(f"{where} is not JSON ({error}): write one JSON object a line") from error
    except RecursionError as error:
        raise TextError(f"{where} is nested too deep: write one flat JSON object a line") from error


def _parse_parquet(content: bytes, name: str) -> list[Document]:
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise TextError(f"{name!r} is not a Parquet file that can be read ({error}): write it again") from error
    if not {"text", "messages"} & set(table.column_names):
        raise TextError(
            f"{name!r} has the columns {', '.join(table.column_names)}: one must be `text` or `messages`, rename it"
        )
    return _documents(enumerate(table.to_pylist(), start=1), name, "row")


def _documents(rows: Iterable[tuple[int, object]], name: str, unit: str) -> list[Document]:
    made = (document_of(row, f"{name}, {unit} {number}", f"{name}:{number}") for number, row in rows)
    return [document for document in made if document is not None]


READERS: dict[str, Callable[[bytes, str], list[Document]]] = {
    ".txt": _parse_text,
    ".jsonl": _parse_jsonl,
    ".parquet": _parse_parquet,
}
