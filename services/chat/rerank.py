"""Texts in the order of how well they answer a query: which profile, which runner, and portions as for embeddings."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.chat.embed import chosen, portioned, portions, within
from services.chat.profiles import Profiles
from services.engine.client import Engine
from services.settings import Settings
from services.wire import Rank, Ranked


@dataclass(frozen=True)
class RerankAsk:
    """Texts to rank, and for whom."""

    owner: str                                          # key id
    query: str                                          # not blank
    texts: Sequence[str]                                # at least one, none of them blank
    model: str | None = None                            # a profile that ranks, or the file of one; None: the first
    allowed_profiles: Sequence[str] | None = None       # None: all
    weight: float = 1.0                                 # the owner's share of the runner beside others


@dataclass(frozen=True)
class Reranked:
    """What became of some texts."""

    profile: str
    model: str                  # the file's name
    scores: list[float]         # in the texts' order; higher is better, the scale is the model's own
    tokens: int                 # of all texts, each with the query


class Reranking:
    """What ranking needs, shared by all requests. Any thread may use it."""

    def __init__(self, settings: Settings, profiles: Profiles, engine: Engine) -> None:
        self.settings = settings
        self.profiles = profiles
        self.engine = engine

    def rank(self, ask: RerankAsk, beat: Callable[[], None] = lambda: None,
             charge: Callable[[int], None] = lambda _tokens: None) -> Reranked:
        """The scores of the texts; as `embed.Embeddings.embed`. An error that is about one text names it in `param`
        ("documents.3")."""
        config = self.profiles.current()
        name, profile = chosen(self.profiles, self.settings.models_dir, ask.model, ask.allowed_profiles, ranks=True)
        spec = self.profiles.spec(profile, self.settings.models_dir)
        check = within(self.settings, beat)
        with self.engine.lease(spec, keep=config.keep(profile), beat=check) as lease:
            def send(portion: list[str]) -> Ranked:
                return lease.rank(Rank(id=str(uuid.uuid4()), owner=ask.owner, query=ask.query, texts=portion,
                                       weight=ask.weight))
            answers = portioned(portions(ask.texts, beside=len(ask.query)), send, "documents.{}".format, check, charge)
            return Reranked(profile=name, model=lease.ready.model,
                            scores=[score for answer in answers for score in answer.scores],
                            tokens=sum(sum(answer.tokens) for answer in answers))
