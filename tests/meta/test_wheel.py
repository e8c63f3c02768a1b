"""What people install is what is here: the wheel brings its SQL along and its programs start."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def installed_wheel(directory: Path, **environment: str) -> Path:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "installed")
    return directory / "installed"


def is_compiled(installed: Path) -> bool:
    asked = "from guestd.store import copy; print(copy.encode is not None)"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=installed, env=environment, check=True, capture_output=True
    )
    return done.stdout == b"True\n"


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler")
def test_the_wheel_brings_what_makes_rows_compiled(tmp_path: Path) -> None:
    assert is_compiled(installed_wheel(tmp_path))


def test_without_a_compiler_the_wheel_is_for_every_python(tmp_path: Path) -> None:
    installed = installed_wheel(tmp_path, PATH=str(tmp_path))
    assert [wheel.name.endswith("-py3-none-any.whl") for wheel in tmp_path.glob("*.whl")] == [True]
    assert not is_compiled(installed)


def test_the_wheel_brings_its_sql_and_its_programs_start(tmp_path: Path) -> None:
    installed = installed_wheel(tmp_path)
    packed = {path.relative_to(installed / "gueststore") for path in (installed / "gueststore/sql").rglob("*.sql")}
    assert packed == {path.relative_to(ROOT) for path in (ROOT / "sql").rglob("*.sql")}
    environment = os.environ | {"PYTHONPATH": str(installed)}
    for program in ("guestd", "gueststore"):
        started = [sys.executable, "-c", f"from {program}.__main__ import main; raise SystemExit(main(['--help']))"]
        done = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"usage: {program}" in done.stdout
