"""Every file of the fuzzer's corpus still holds the properties, without the fuzzer."""

from pathlib import Path

from support.fuzz_target import check

CORPUS = Path(__file__).parents[2] / "tools/fuzz/corpus"


def test_nothing_in_the_corpus_of_the_fuzzer_breaks_a_property() -> None:
    files = sorted(CORPUS.iterdir())
    assert files
    for file in files:
        check(file.read_bytes())


def test_the_corpus_stays_small() -> None:
    sizes = [file.stat().st_size for file in CORPUS.iterdir()]
    assert len(sizes) <= 600
    assert sum(sizes) <= 1_000_000
