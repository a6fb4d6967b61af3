"""What every store of uploads must do; each back-end's tests inherit it."""

from __future__ import annotations

import threading

import pytest

from services.errors import NotFound, TooManyRequests


class UploadsContract:
    def test_what_is_put_is_there_for_its_owner_and_the_master(self, store):
        put = store.put("k1", "file-1", "file", {"name": "ä.jsonl"}, [b"a\n", b"\xff"])
        assert store.get("k1", "file-1") == store.get(None, "file-1") == put
        assert (put.size, put.kind, put.about) == (3, "file", {"name": "ä.jsonl"}) and put.created > 0
        assert list(store.pieces("k1", "file-1")) == [b"a\n", b"\xff"] and list(store.pieces("k2", "file-1")) == []
        for owner, id in (("k2", "file-1"), ("k1", "file-2"), (None, "x")):
            with pytest.raises(NotFound):
                store.get(owner, id)

    def test_lists_are_an_owners_own_and_come_in_pages(self, store):
        for number in range(5):
            store.put(f"k{number % 2}", f"file-{number}", "file", {})
        store.put("k0", "batch-1", "batch", {})
        assert [one.id for one in store.all("k0", "file")] == ["file-4", "file-2", "file-0"]
        first = store.all(None, "file", 2)
        assert [one.id for one in first] == ["file-4", "file-3"]
        assert [one.id for one in store.all(None, "file", 9, first[-1].number)] == ["file-2", "file-1", "file-0"]
        assert [one.id for one in store.all("k0", "batch")] == ["batch-1"]

    def test_pieces_are_appended_and_read_from_anywhere(self, store):
        store.put("k1", "out", "batch", {})
        for number in range(250):
            store.append("k1", "out", b"%d" % number)
        assert list(store.pieces("k1", "out")) == [b"%d" % number for number in range(250)]
        assert list(store.pieces("k1", "out", 248)) == [b"248", b"249"] and list(store.pieces("k1", "out", 250)) == []
        assert store.get("k1", "out").size == sum(len(str(number)) for number in range(250))
        for owner, id in (("k2", "out"), ("k1", "none")):
            with pytest.raises(NotFound):
                store.append(owner, id, b"x")

    def test_changes_are_whole(self, store):
        store.put("k1", "out", "batch", {"n": 0})

        def add():
            for _ in range(10):
                store.change("k1", "out", lambda about: {**about, "n": about["n"] + 1})
        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.get("k1", "out").about == {"n": 40}
        with pytest.raises(NotFound):
            store.change("k2", "out", lambda about: about)

    def test_what_is_deleted_is_gone_with_its_pieces(self, store):
        for _ in range(2):
            store.put("k1", "file-1", "file", {}, [b"abc"])
            with pytest.raises(NotFound):
                store.delete("k2", "file-1")
            store.delete("k1", "file-1")
            assert store.all(None, "file") == [] and list(store.pieces("k1", "file-1")) == []
            with pytest.raises(NotFound):
                store.get("k1", "file-1")

    def test_an_owner_may_keep_so_much(self, store):
        store.most = 10
        store.put("k1", "a", "file", {}, [b"12345"])
        store.append("k1", "a", b"6789")
        with pytest.raises(TooManyRequests) as caught:
            store.put("k1", "b", "file", {}, [b"12"])
        assert caught.value.code == "too_many_files"
        store.put("k2", "b", "file", {}, [b"12"])
        store.delete("k1", "a")
        store.put("k1", "c", "file", {}, [b"1234567890"])

    def test_another_process_sees_the_same(self, store, another):
        store.put("k1", "a", "file", {"x": 1}, [b"12345"])
        assert another().get("k1", "a").about == {"x": 1} and list(another().pieces("k1", "a")) == [b"12345"]
