"""Where a model's name leads: a directory, a GGUF file, a snapshot of the hub, or the embedded default `smollm2`."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from subeight.errors import ModelError
from subeight.models.smollm2 import unpacked

ALIAS = "smollm2"


@dataclass(frozen=True)
class Source:
    """A model's files: `directory` holds them, `gguf` is set where one GGUF file is the model."""

    label: str
    directory: Path
    gguf: Path | None = None

    def files(self) -> list[Path]:
        """The files that define the model."""
        if self.gguf is not None:
            return [self.gguf]
        return sorted(path for path in self.directory.iterdir() if path.is_file())


def locate(name: str) -> Source:
    """Finds the model `name`; raises ModelError in one sentence where there is none."""
    if name == ALIAS:
        return Source(ALIAS, unpacked())
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"There is no file {name}; give a .gguf file, a checkpoint directory or a hub id.")
        return Source(path.stem, path.parent, path)
    if path.is_dir():
        return Source(path.resolve().name, path)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    if path.exists() or looks_local:
        raise ModelError(
            f"There is no model at {name}; give a directory with config.json and safetensors, a .gguf file, a hub id "
            f"(owner/name), or the embedded default {ALIAS!r}."
        )
    return Source(name.rpartition("/")[2], _download(name))


def _download(name: str) -> Path:
    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"There is no directory {name} and no model of that id on the hub; check the name.") from error
    except Exception as error:  # the hub's HTTP library is its own choice, and not all of its errors are OSErrors
        raise ModelError(
            f"{name} is no local directory, and the hub cannot be reached to download it; give a local directory, or "
            f"the embedded default {ALIAS!r}."
        ) from error
