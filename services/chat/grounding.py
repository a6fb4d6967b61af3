"""What answers are grounded in: knowledge bases that a question names, or what the model finds worth looking up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from services.chat import embed
from services.chat.events import Ask, Beat, Event, Final, Search, Spent, Waiting
from services.chat.profiles import Profiles
from services.engine.client import Engine
from services.errors import ContextOverflow, Unavailable
from services.knowledge.bases import Bases
from services.knowledge.choose import choose
from services.knowledge.feeds import Feeds
from services.knowledge.fetch import Fetcher
from services.knowledge.index import Indexer, Model
from services.knowledge.ingest import Limits
from services.knowledge.places import Place, Places
from services.knowledge.read import SourceReader
from services.knowledge.references import Reference
from services.settings import Settings
from services.store.opening import open_library

JUDGED = 160                # tokens of an answer that only decides
LONGEST_QUESTION = 400      # characters of a question that are searched with: embedding models read some hundred tokens
Answer = Callable[[Ask], Generator[Event, None, None]]


class Grounding:
    """Where answers can be found, shared by all requests. Any thread may use it. `charge` counts a key's tokens."""

    def __init__(self, settings: Settings, profiles: Profiles, engine: Engine,
                 charge: Callable[[str, int], None]) -> None:
        self._settings, self._profiles, self._engine, self._charge = settings, profiles, engine, charge
        self.fetcher = Fetcher(settings)
        self.feeds = Feeds(settings.data_dir / "feeds.json")
        self._lock = threading.Lock()
        self._bases: Bases | None = None

    @property
    def bases(self) -> Bases:
        """The knowledge bases; opened when they are first asked for."""
        with self._lock:
            if self._bases is None:
                limits = Limits(documents=self._settings.knowledge_documents,
                                characters=self._settings.knowledge_bytes, pages=self._settings.knowledge_pages)
                self._bases = Bases(open_library(self._settings), Indexer(self._engine, self._model, self._charge),
                                    SourceReader(self.fetcher), limits, stopping=self._stopping)
            return self._bases

    def go_on(self) -> None:
        """Have the work that a server before this one left go on, where there may be any."""
        if self._settings.knowledge_url or (self._settings.data_dir / "knowledge").is_dir():
            self.bases.start()

    def _stopping(self) -> bool:
        """Whether the runners wait for who uses them, to end."""
        try:
            return self._engine.status().draining
        except Unavailable:             # and so is who starts them
            return True

    def _model(self, profile: str | None, allowed: Sequence[str] | None) -> Model:
        config = self._profiles.current()
        name, found = embed.chosen(self._profiles, self._settings.models_dir, profile, allowed)
        return Model(name, self._profiles.spec(found, self._settings.models_dir), config.keep(found),
                     embed.prefix(found, "document"), embed.prefix(found, "query"))

    # ------------------------------------------------------------ for one answer

    def found(self, ask: Ask, question: str, check: Callable[[], None]) -> list[Reference]:
        """The best passages of the bases that `ask` names. `check` is called about every second."""
        start = LONGEST_QUESTION // 2
        query = question if len(question) <= LONGEST_QUESTION else f"{question[:start]} {question[-start:]}"
        return [Reference.of_hit(hit)
                for hit in self.bases.search(ask.owner, ask.knowledge, query, ask.passages, beat=check)]

    def places(self, ask: Ask) -> list[Place]:
        """Where the model may look. Raises what is wrong with those that are named."""
        assert ask.search is not None, "nothing is to be looked for"
        known = Places(self.bases, self.feeds, self.fetcher, self._settings.wikis)
        return known.of(ask.owner, ask.knowledge, ask.search.places)

    def chosen(self, ask: Ask, question: str, places: Sequence[Place], answer: Answer,
               check: Callable[[], None]) -> Generator[Event, None, Sequence[Reference]]:
        """What the model finds worth using, of what it looks up there. `answer` asks a model."""
        assert ask.search is not None, "nothing is to be looked for"
        return (yield from choose(question, places, _Judge(ask, ask.search, answer, check)))


class _Judge:
    """Asks the model what it decides about."""

    def __init__(self, ask: Ask, search: Search, answer: Answer, check: Callable[[], None]) -> None:
        self._spent, self._answer, self._check = ask.spent, answer, check
        who = search.judge or Ask(ask.owner, profile=ask.profile, model=ask.model, n_ctx=ask.n_ctx,
                                  n_threads=ask.n_threads, n_gpu_layers=ask.n_gpu_layers,
                                  allowed_profiles=ask.allowed_profiles)
        self._ask = replace(who, temperature=0.0, max_tokens=JUDGED, stream=False, thinking=False, weight=ask.weight,
                            batch=ask.batch, request_id=ask.request_id)

    def __call__(self, prompt: str, schema: dict[str, Any]) -> Generator[Event, None, Any]:
        spent = Spent()
        try:
            with closing(self._answer(replace(self._ask, prompt=prompt, schema=schema, spent=spent))) as events:
                for event in events:
                    self._check()
                    if isinstance(event, Final):
                        return _value(event.result)
                    yield event if isinstance(event, Waiting) else Beat()
            raise AssertionError("an answer ended without its Final")
        except ContextOverflow as error:
            raise ContextOverflow(f"the model cannot be asked where to look: {error.message}; name fewer places, or "
                                  "have a personality with a longer context decide (rag_helper)", param="search",
                                  **error.details) from None
        finally:
            self._spent.search_prompt_tokens += spent.prompt_tokens
            self._spent.search_completion_tokens += spent.completion_tokens


def _value(answer: str) -> Any:
    """None where the answer was cut short."""
    try:
        return json.loads(answer)
    except ValueError:
        return None
