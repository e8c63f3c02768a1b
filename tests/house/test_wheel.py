"""What people install is what is here: the wheel brings its SQL along and its programs start."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_brings_its_sql_and_its_programs_start(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    packed = {path.name for path in (installed / "gueststore/sql").rglob("*.sql")}
    assert packed == {path.name for path in (ROOT / "sql").rglob("*.sql")}
    environment = os.environ | {"PYTHONPATH": str(installed)}
    for program in ("guestd", "gueststore"):
        started = [sys.executable, "-c", f"from {program}.__main__ import main; raise SystemExit(main(['--help']))"]
        done = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"usage: {program}" in done.stdout
