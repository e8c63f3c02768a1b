"""The fuzzer's process: libFuzzer's options and corpora as arguments (tools/fuzz/main.py gives them)."""

import os
import random
import re
import sys

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # only the fuzzer's environment has it

with atheris.instrument_imports(include=["guestd"]):
    from support.fuzz_target import check

from support.poison import MARK, POISON, TEMPLATES

VALUES = [*POISON.values()]
# A scalar in a JSON text, near enough.
SPOT = re.compile(rb'(?<=[:,\[])(?:"[^"\\]{0,200}"|-?[\d.eE+-]{1,40}|true|false|null)(?=[,}\]])')


def mutated(content: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time by bytes, half by the message's own structure: another value in some place of it."""
    dice = random.Random(seed)
    if dice.random() < 0.1:
        _, template = dice.choice(TEMPLATES)
        return template.replace(MARK, dice.choice(VALUES))[:max_size]
    spots = [*SPOT.finditer(content)] if dice.random() < 0.5 else []
    if not spots:
        return bytes(atheris.Mutate(content, max_size))
    spot = dice.choice(spots)
    return (content[: spot.start()] + dice.choice(VALUES) + content[spot.end() :])[:max_size]


if __name__ == "__main__":
    # What libFuzzer calls to go on after an input that ends it.
    program = os.environ.get("GUESTD_FUZZ_PROGRAM", sys.argv[0])
    atheris.Setup([program, *sys.argv[1:]], check, custom_mutator=mutated)
    atheris.Fuzz()
