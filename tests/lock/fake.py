"""A small package in two versions, the second of which changes an activation at every start of Python; its wheels."""

import base64
import hashlib
import zipfile
from pathlib import Path

NAME = "fastsilu"
# Version 2 answers with other numbers; both leave torch alone until somebody imports it.
_CODE = {
    "1.0": "",
    "2.0": """
import importlib.abc
import importlib.machinery
import sys


class _After(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.nn.functional":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        plain = spec.loader.exec_module

        def patched(module):
            plain(module)
            silu = module.silu
            module.silu = lambda x, inplace=False: -silu(x)

        spec.loader.exec_module = patched
        return spec


sys.meta_path.insert(0, _After())
""",
}


def wheel(folder: Path, version: str, name: str = NAME, code: str | None = None) -> Path:
    """Writes a wheel with a module of the package's name and a .pth file that imports it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": _CODE[version] if code is None else code,
        f"{name}.pth": f"import {name}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    return path
