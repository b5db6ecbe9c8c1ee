"""llama-cpp-python's source, for slow tests on what lies in it: chat templates and vocabularies of real models.

They are their makers' and not ours to ship: pip fetches the source when a test asks for it, once for a version.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import llama_cpp
import platformdirs


def llama_models() -> Path:
    """The folder `models` of llama.cpp's source, of the version that is installed."""
    name = f"llama_cpp_python-{llama_cpp.__version__}"
    kept = Path(platformdirs.user_cache_dir("storyfi-lite")) / "source"
    inside = f"{name}/vendor/llama.cpp/models"
    if not (kept / inside).is_dir():
        kept.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept) as part:
            wanted = ["--no-deps", "--no-binary", ":all:", name.replace("llama_cpp_python-", "llama-cpp-python==")]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", part]
            subprocess.run([*pip, *wanted], check=True, timeout=900)
            with tarfile.open(Path(part) / f"{name}.tar.gz") as source:
                members = [member for member in source if member.name.startswith(inside + "/")]
                source.extractall(part, members, filter="data")
            (kept / name / "vendor" / "llama.cpp").mkdir(parents=True, exist_ok=True)
            (Path(part) / inside).rename(kept / inside)
    return kept / inside
