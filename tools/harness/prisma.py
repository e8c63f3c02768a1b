"""Prisma's client for the schema, as the platform uses it: from npm into the cache of ./dev, generated there once.

Tests check that the client works on the store, and `./dev bench peers` measures how fast it writes.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

SCHEMA = Path(__file__).parents[2] / "schema/schema.prisma"
PROGRAMS = Path(__file__).parents[2] / "schema/prisma-client"
# 157 packages over the network and a cold parser.
INSTALL_SECONDS = 400


def generate_client() -> Path | None:
    """Return the directory of the client for schema.prisma, generated on first use; None without npm."""
    if shutil.which("npm") is None:
        return None
    lock = (PROGRAMS / "package-lock.json").read_bytes()
    name = hashlib.sha256(lock + SCHEMA.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("GUESTD_CACHE") or Path.home() / ".cache/guestd")
    packages = cache / f"prisma-client-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (packages / "stamp").exists():
        packages.mkdir(parents=True, exist_ok=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(PROGRAMS / file, packages)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(install, cwd=packages, check=True, capture_output=True, timeout=INSTALL_SECONDS)
        (packages / "stamp").touch()
    client = packages / f"generated-{name}"
    if not (client / "stamp").exists():
        scratch = packages / f"schema-{name}.prisma"
        # Of the two kinds of client that Prisma generates, the one that node runs directly.
        text = SCHEMA.read_text("utf-8").replace('"prisma-client"', '"prisma-client-js"')
        scratch.write_text(text.replace('"./generated"', f'"./{client.name}"'), "utf-8")
        # It requires an engine that only its migrations use, and accepts any program as one.
        environment = os.environ | {
            "PRISMA_SCHEMA_ENGINE_BINARY": shutil.which("true") or "",
            "CHECKPOINT_DISABLE": "1",
        }
        generate = ["node", "node_modules/prisma/build/index.js", "generate", "--schema", scratch.name]
        subprocess.run(
            generate, cwd=packages, env=environment, check=True, capture_output=True, timeout=INSTALL_SECONDS
        )
        (client / "stamp").touch()
    return client


def run_program(client: Path, dsn: str, program: str, *arguments: str, **options: str) -> str:
    """Return the output of a program of schema/prisma-client on a database. Raises RuntimeError with its errors."""
    parts = conninfo_to_dict(dsn)
    pool = {"host": parts["host"], "port": int(str(parts["port"])), "user": parts["user"], "database": parts["dbname"]}
    if parts.get("password"):
        pool["password"] = parts["password"]
    done = subprocess.run(
        ["node", PROGRAMS / program, *arguments],
        env=os.environ | {"NODE_PATH": str(client.parent / "node_modules")},
        input=json.dumps({"pool": pool} | options),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program}: {done.stderr}")
    return done.stdout
