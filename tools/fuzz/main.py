"""./dev fuzz: search for bytes that break framing, decoding or normalising, guided by coverage (atheris).

It starts from tools/fuzz/corpus and from what earlier runs left in the cache. An input that breaks a property is
written to the cache and ends the run with its traceback. At the end tools/fuzz/corpus is replaced by the smallest
inputs that together cover the same code, bounded in number and bytes; tools/fuzz/runs.jsonl gets a line.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tools/fuzz/corpus"
SEARCH = ROOT / "tools/fuzz/search.py"
RUNS = ROOT / "tools/fuzz/runs.jsonl"
MAX_BYTES = 16_000
KEPT_FILES = 500
KEPT_BYTES = 800_000
KEPT_FILE_BYTES = 8_000


def main() -> None:
    """Fuzz for some minutes, then keep the corpus and record the run."""
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("minutes", type=float, nargs="?", default=10, help="how long (default: 10)")
    parser.add_argument(
        "--work", type=Path, default=Path(os.environ.get("GUESTD_CACHE", "/tmp")) / "fuzz", help="where the cache is"
    )
    arguments = parser.parse_args()
    found = arguments.work / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    log = arguments.work / "log"
    _dictionary(arguments.work / "words")
    _program(arguments.work / "search")
    options = [
        f"-max_total_time={int(arguments.minutes * 60)}",
        f"-max_len={MAX_BYTES}",
        "-timeout=20",
        "-rss_limit_mb=2048",
    ]
    options += [
        f"-dict={arguments.work / 'words'}",
        f"-artifact_prefix={arguments.work}/broken-",
        "-print_final_stats=1",
    ]
    started = time.monotonic()
    with log.open("wb") as said:
        done = _search(arguments.work, [*options, str(found), str(CORPUS)], said)
    text = log.read_text(errors="replace")
    figures = _figures(text, started)
    if done:
        print(text[-5000:], file=sys.stderr)
    else:
        _keep(arguments.work, found)
    figures |= {"corpus_files": len(list(CORPUS.iterdir())), "broken": len(list(arguments.work.glob("broken-*")))}
    with RUNS.open("a") as runs:
        runs.write(json.dumps(figures) + "\n")
    print(json.dumps(figures))
    sys.exit(done)


def _search(work: Path, options: list[str], said: IO[bytes]) -> int:
    # Behind ours what ./dev has set: where guestd_rows.c is compiled.
    paths = [*(str(ROOT / name) for name in ("daemon", "schema", "tests")), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))
    environment = {**os.environ, "PYTHONPATH": path, "GUESTD_FUZZ_PROGRAM": str(work / "search")}
    command = [str(work / "search"), *options]
    return subprocess.run(command, stdout=said, stderr=said, check=False, env=environment).returncode


def _program(file: Path) -> None:
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SEARCH}" "$@"\n')
    file.chmod(0o755)


def _figures(text: str, started: float) -> dict[str, object]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    executed = re.findall(r"stat::number_of_executed_units:\s*(\d+)", text) or re.findall(
        r"^#(\d+)\s", text, re.MULTILINE
    )
    features = re.findall(r"\bft: (\d+)", text)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "executions": int(executed[-1]) if executed else 0,
        "features": int(features[-1]) if features else 0,
    }


def _keep(work: Path, found: Path) -> None:
    """Replace the repository's corpus: merged by coverage, small inputs first."""
    merged = work / "merged"
    subprocess.run(["rm", "-rf", str(merged)], check=True)
    merged.mkdir()
    with (work / "merge.log").open("wb") as said:
        _search(work, ["-merge=1", f"-max_len={KEPT_FILE_BYTES}", str(merged), str(CORPUS), str(found)], said)
    files = sorted((file for file in merged.iterdir() if file.stat().st_size <= KEPT_FILE_BYTES), key=_size)
    room = KEPT_BYTES
    kept = {}
    for file in files[:KEPT_FILES]:
        room -= _size(file)
        if room < 0:
            break
        kept[file.name] = file.read_bytes()
    if not kept:
        return
    for file in CORPUS.iterdir():
        file.unlink()
    for name, content in kept.items():
        (CORPUS / name).write_bytes(content)


def _size(file: Path) -> int:
    return file.stat().st_size


def _dictionary(file: Path) -> None:
    """Words of the wire, so that the search need not find them letter by letter."""
    sources = [
        (ROOT / "daemon/guestd" / name).read_text()
        for name in ("wire/schema.py", "rows/normalise.py", "rows/json_columns.py")
    ]
    names = sorted({name for source in sources for name in re.findall(r"^    (\w+): ", source, re.MULTILINE)})
    words = [f'\\"{name}\\":' for name in names] + [
        "NaN",
        "Infinity",
        "1e400",
        "\\\\u0000",
        "\\\\ud800",
        '{\\"type\\":\\"metrics\\",',
    ]
    file.write_text("".join(f'"{word}"\n' for word in words))


if __name__ == "__main__":
    main()
