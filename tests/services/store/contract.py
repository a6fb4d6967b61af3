"""What every store must do; each back-end's tests inherit it."""

import threading

import pytest

from services.errors import BadRequest, Conflict, Gone, NotFound, SessionBusy
from services.store.base import Store, new_head

HEAD = new_head("2026-01-01T00:00:00.000+00:00")


def said(content, role="user", at="2026-01-01T00:00:01.000+00:00"):
    return {"type": role, "at": at, "content": content, "extra": {}}


def add(store: Store, owner: str, sid: str, *contents: str) -> None:
    with store.open(owner, sid, 5, HEAD) as log:
        for content in contents:
            log.append(said(content))


def contents(store: Store, owner: str, sid: str) -> list[str]:
    return [record["content"] for record in store.read(owner, sid)[1:]]


class StoreContract:
    """Subclasses give the fixture `store`."""

    def test_records_come_back_numbered_in_order(self, store):
        add(store, "0", "1", "one", "two")
        add(store, "0", "1", "three")
        records = store.read("0", "1")
        assert [record["n"] for record in records] == [0, 1, 2, 3]
        assert contents(store, "0", "1") == ["one", "two", "three"]
        assert (records[0]["owner"], records[0]["id"], records[0]["v"]) == ("0", "1", 1)

    def test_owners_do_not_see_each_other(self, store):
        add(store, "0", "1", "mine")
        add(store, "kabcDEF12", "1", "yours")
        add(store, "of-a-seed_1", "1", "theirs")
        assert contents(store, "0", "1") == ["mine"] and contents(store, "kabcDEF12", "1") == ["yours"]
        assert store.owners() == ["0", "kabcDEF12", "of-a-seed_1"]
        assert set(store.index("0")) == {"1"} and store.index("nobody") == {}
        with pytest.raises(NotFound):
            store.read("nobody", "1")

    def test_absent_ones(self, store):
        for act in (lambda: store.read("0", "1"), lambda: store.delete("0", "1"),
                    lambda: store.open("0", "1", 1).__enter__()):
            with pytest.raises(NotFound) as caught:
                act()
            assert caught.value.message == "there is no session 1"

    @pytest.mark.parametrize("sid", ["../x", "", "a/b", ".", "x" * 65, "Active", "con", "１", "a\0"])
    def test_names_that_cannot_be(self, store, sid):
        with pytest.raises(BadRequest):
            store.open("0", sid, 1, HEAD).__enter__()
        with pytest.raises(BadRequest):
            store.open("../0", "1", 1, HEAD).__enter__()

    def test_a_session_without_anything_is_none(self, store):
        with store.open("0", "1", 1, HEAD):
            assert store.index("0") == {}
            with pytest.raises(NotFound):
                store.read("0", "1")
        with pytest.raises(NotFound):
            store.delete("0", "1")

    def test_index(self, store):
        add(store, "0", "1", "a" * 31)
        add(store, "0", "b", "short")
        with store.open("0", "b", 1) as log:
            log.append({"type": "rename", "name": "new", "at": "2027"})
        index = store.index("0")
        assert index["1"].name == "a" * 30 + "..." and index["1"].turns == 1
        assert (index["b"].name, index["b"].updated, index["b"].problem) == ("new", "2027", None)

    def test_one_writer_at_a_time(self, store):
        with store.open("0", "1", 1, HEAD) as log:
            log.append(said("x"))
            with pytest.raises(SessionBusy) as caught:
                store.open("0", "1", 0.05).__enter__()
            assert caught.value.status == 409 and caught.value.retry_after
            add(store, "0", "2", "another session is free")
            assert contents(store, "0", "1") == ["x"]

    def test_threads_take_turns(self, store):
        def write(name):
            for number in range(10):
                with store.open("0", "1", 60, HEAD) as log:
                    log.append(said(f"{name} {number} a"))
                    log.append(said(f"{name} {number} b"))
        threads = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        found = contents(store, "0", "1")
        assert len(found) == 60
        assert all(a[:-1] == b[:-1] and (a[-1], b[-1]) == ("a", "b") for a, b in zip(found[::2], found[1::2],
                                                                                  strict=True))

    def test_deleted_while_it_is_written(self, store):
        with store.open("0", "1", 1, HEAD) as log:
            log.append(said("x"))
            store.delete("0", "1")
            with pytest.raises(Gone):
                log.append(said("y"))
        assert store.index("0") == {}
        add(store, "0", "1", "new")
        assert contents(store, "0", "1") == ["new"]

    def test_deleted_and_made_again_while_it_is_written(self, store):
        with store.open("0", "1", 1, HEAD) as log:
            log.append(said("x"))
            store.delete("0", "1")
            add(store, "0", "1", "new")
            with pytest.raises(Gone):
                log.append(said("y"))
        assert contents(store, "0", "1") == ["new"]

    def test_create(self, store):
        records = [new_head("2026", "a name"), said("x"), said("y", "assistant")]
        assert store.create("0", lambda used: "5" if not used else "no", records) == "5"
        assert contents(store, "0", "5") == ["x", "y"] and store.index("0")["5"].name == "a name"
        with pytest.raises(Conflict):
            store.create("0", lambda used: "5" if "5" in used and set(used) == {"5"} else "no", records)
        assert records[0].get("id") is None

    def test_what_was_read_is_the_readers_own(self, store):
        add(store, "0", "1", "x")
        store.read("0", "1")[1]["content"] = "changed"
        assert contents(store, "0", "1") == ["x"]
