"""Which route table is in force."""

from pathlib import Path

from gateway_builders import endpoint, table
from mux_core.routes import RouteTable, to_json
from mux_runtime.gateway.book import RouteBook


def test_the_newest_generation_wins_and_the_same_one_may_come_again() -> None:
    book, heard = RouteBook(), list[RouteTable]()
    book.listen(heard.append)
    assert book.apply(table(generation=2))
    assert not book.apply(table(endpoint(1), generation=1))
    assert book.apply(table(endpoint(1), generation=2))
    assert book.table == table(endpoint(1), generation=2)
    assert [found.generation for found in heard] == [2, 2]


def test_a_missing_file_is_an_empty_table(tmp_path: Path) -> None:
    book = RouteBook()
    assert not book.has_table
    book.read(tmp_path / "routes.json")
    assert book.has_table
    assert book.table.routes == ()


def test_a_wrong_file_leaves_the_table_in_force(tmp_path: Path) -> None:
    book, path = RouteBook(), tmp_path / "routes.json"
    path.write_text(to_json(table(endpoint(1))))
    book.read(path)
    for text in ("{", '{"routes": 3}', "[]"):
        path.write_text(text)
        book.read(path)
    path.unlink()
    book.read(path)
    assert book.table == table(endpoint(1))
