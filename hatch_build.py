"""Compiles daemon/guestd/rows/guestd_rows.c into the wheel; without a C compiler the wheel is pure Python.

`python hatch_build.py DIRECTORY` compiles it for a checkout; ./dev adds the directory to Python's path.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path(__file__).parent / "daemon" / "guestd" / "rows" / "guestd_rows.c"


def compile_rows(directory: Path) -> Path | None:
    """Compile the extension; None, with a message, when that fails."""
    directory.mkdir(parents=True, exist_ok=True)
    extension = directory / f"guestd_rows{sysconfig.get_config_var('EXT_SUFFIX')}"
    headers = f"-I{sysconfig.get_path('include')}"
    try:
        command = [
            "cc",
            "-O2",
            "-DNDEBUG",
            "-Wall",
            "-shared",
            "-fPIC",
            headers,
            str(SOURCE),
            "-o",
            str(extension),
            "-lm",
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        message = (getattr(exc, "stderr", None) or str(exc)).strip().partition("\n")[0]
        sys.stderr.write(
            f"guestd_rows.c could not be compiled, guestd will use slower Python code: {message}; "
            "install a C compiler and Python's headers\n"
        )
        return None
    return extension


class CustomBuildHook(BuildHookInterface):
    """Called by hatchling when it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the extension, and mark the wheel as built for this Python and machine."""
        if version == "editable":
            return
        self._scratch = Path(tempfile.mkdtemp())
        if (extension := compile_rows(self._scratch)) is not None:
            build_data["force_include"][str(extension)] = extension.name
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the scratch directory."""
        if version != "editable":
            shutil.rmtree(self._scratch)


if __name__ == "__main__":
    sys.exit(compile_rows(Path(sys.argv[1])) is None)
