"""The loop of a runner, as others see it while it is in a step that does not end."""

from typing import Any

from services.engine.states import Watchdog
from services.runner.loop import Loop
from services.wire import Count, Counted, Detokenize, Embed, Generate, Tokenize, Tokens
from tests.services.runner.fakes import Desk, FakeBackend


class Idle(Loop[Any]):
    """One that never runs."""

    def prepare(self, message: Generate | Embed) -> Any:
        raise AssertionError("nobody asks")

    def count(self, message: Count) -> Counted:
        raise AssertionError("nobody asks")

    def tokens(self, message: Tokenize | Detokenize) -> Tokens:
        raise AssertionError("nobody asks")


def test_who_is_not_heard_waits_so_a_loop_that_hangs_is_found_out() -> None:
    loop = Idle(Desk(FakeBackend()).scheduler)
    dog = Watchdog(10.0, 0.0)
    assert loop.stats().waiting == 0 and dog.complaint(loop.stats(), 1000.0) is None
    loop.begin(object())
    assert loop.stats().waiting == 1
    assert dog.complaint(loop.stats(), 1001.0) is None
    assert "no progress" in (dog.complaint(loop.stats(), 1100.0) or "")
