import os
from collections.abc import Iterator

import pytest

from mux_core.errors import CapacityError, InvariantError, SpecError
from mux_runtime.kvpool import arenas
from mux_runtime.kvpool.arenas import KvArena, WeightBook, new_file

PAGE = 4096


@pytest.fixture
def book() -> Iterator[WeightBook]:
    book = WeightBook(limit=3 * PAGE)
    yield book
    for sealed in (True, False):
        for name in book.sizes(sealed=sealed):
            book.drop(name)


@pytest.mark.parametrize("folder", ["/dev/shm", "/missing"])
def test_a_file_has_a_size_and_no_name(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(arenas, "_FOLDER", folder)
    fd, backing = new_file(5 * PAGE)
    assert backing == ("tmpfs" if folder == "/dev/shm" else "memfd")
    assert (os.fstat(fd).st_size, os.fstat(fd).st_nlink) == (5 * PAGE, 0)
    assert "(deleted)" in os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)


def test_a_folder_that_is_too_small_is_passed_over() -> None:
    fd, backing = new_file(1 << 45)
    os.close(fd)
    assert backing == "memfd"


def test_punching_spares_part_pages() -> None:
    kv = KvArena(4 * PAGE)
    os.pwrite(kv.fd, b"x" * 4 * PAGE, 0)
    kv.punch(1, PAGE - 2)
    kv.punch(0, 0)
    assert kv.resident_bytes == 4 * PAGE
    kv.punch(PAGE - 1, 2 * PAGE)
    assert kv.resident_bytes == 3 * PAGE
    assert os.pread(kv.fd, PAGE, PAGE) == bytes(PAGE)
    for start, length in ((-1, 4), (0, 4 * PAGE + 1), (0, -1)):
        with pytest.raises(SpecError, match="punch of bytes"):
            kv.punch(start, length)
    os.close(kv.fd)


def test_an_arena_without_bytes_is_refused() -> None:
    with pytest.raises(SpecError, match="KV arena: 0 bytes"):
        KvArena(0)


def test_sealed_weights_are_given_out_read_only(book: WeightBook) -> None:
    file = book.create("chat", PAGE, loader=1)
    os.pwrite(file.fd, b"weights", 0)
    book.seal("chat", "digest", loader=1)
    assert (file.is_sealed, file.digest, os.pread(file.fd, 7, 0)) == (True, "digest", b"weights")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(file.fd, b"x", 0)
    assert book.find("chat", PAGE) is file


def test_only_the_loader_seals_and_only_once(book: WeightBook) -> None:
    book.create("chat", PAGE, loader=1)
    with pytest.raises(InvariantError, match="weights chat: sealed by a connection"):
        book.seal("chat", "digest", loader=2)
    book.seal("chat", "digest", loader=1)
    with pytest.raises(InvariantError, match="weights chat: sealed by a connection"):
        book.seal("chat", "digest", loader=1)
    with pytest.raises(InvariantError, match="weights code: sealed by a connection"):
        book.seal("code", "digest", loader=1)


def test_weights_together_stay_within_the_account(book: WeightBook) -> None:
    book.create("chat", 2 * PAGE, loader=1)
    with pytest.raises(CapacityError, match=r"code: 8\.0 KiB beside 8\.0 KiB .* has 12\.0 KiB"):
        book.create("code", 2 * PAGE, loader=1)
    book.drop("chat")
    book.create("code", 3 * PAGE, loader=1)


def test_what_a_gone_loader_had_not_sealed_is_dropped(book: WeightBook) -> None:
    for name in ("sealed", "half"):
        book.create(name, PAGE, loader=1)
    book.create("anothers", PAGE, loader=2)
    book.seal("sealed", "digest", loader=1)
    book.drop_unsealed_of(1)
    assert (book.sizes(sealed=True), book.sizes(sealed=False)) == (
        {"sealed": PAGE},
        {"anothers": PAGE},
    )
