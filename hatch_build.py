"""Compiles daemon/guestd/rows/compiled.c into the wheel; where there is no compiler the wheel is of Python alone.

`python hatch_build.py DIRECTORY` compiles it for a checkout, where ./dev puts the directory on Python's path.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path(__file__).parent / "daemon" / "guestd" / "rows" / "compiled.c"


def compiled(directory: Path) -> Path | None:
    """The extension, or None and a sentence where it cannot be compiled."""
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
        said = (getattr(exc, "stderr", None) or str(exc)).strip().partition("\n")[0]
        sys.stderr.write(f"compiled.c is not compiled, guestd stores more slowly: {said}\n")
        return None
    return extension


class CustomBuildHook(BuildHookInterface):
    """What hatchling calls before it writes a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the extension, and say that the wheel is of this Python and machine."""
        if version == "editable":
            return
        self._scratch = Path(tempfile.mkdtemp())
        if (extension := compiled(self._scratch)) is not None:
            build_data["force_include"][str(extension)] = extension.name
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Take away what is in the wheel now."""
        if version != "editable":
            shutil.rmtree(self._scratch)


if __name__ == "__main__":
    sys.exit(compiled(Path(sys.argv[1])) is None)
