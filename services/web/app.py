"""The WSGI application: the parts it works with, the table of its routes, and how they are put together."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask, request

from auth.gate import Gate
from auth.keys import Keys
from auth.limits import Admissions
from services.chat.answer import Chat
from services.chat.grounding import Grounding
from services.chat.idempotency import Idempotency
from services.chat.personas import FOLDER, Personas
from services.chat.profiles import Profiles
from services.chat.sessions import Sessions
from services.engine.client import Engine
from services.engine.model_jobs import Jobs, jobs_of
from services.settings import Settings, is_loopback
from services.store.jobs import JobStore
from services.store.opening import open_jobs, open_kept, open_store, open_uploads
from services.store.uploads import UploadStore
from services.web import (
    answer,
    assistant,
    docs,
    frame,
    gallery,
    health,
    hosts,
    jobs,
    keys,
    knowledge,
    metrics,
    models,
    openapi,
    page,
    personas,
    profiles,
    rerank,
    sessions,
)
from services.web.anthropic import counting, messages
from services.web.bindings import routes as bindings
from services.web.bindings.desk import Desk
from services.web.drain import Drain
from services.web.openai import batches, chat, completions, embeddings, files, listing, tokens
from services.web.responses import routes as responses
from services.web.routes import PlainApi, Route, register
from services.web.sockets import routes as sockets
from services.web.sockets.switchboard import Switchboard
from services.web.summaries import routes as summaries

SPARE_THREADS = 8       # never taken by what may wait for long, so that a full house can still say so

ROUTES = (
    Route("/answer", answer.Answers, "answer"),
    Route("/answer/<string:session_id>", sessions.Session, "sessions"),
    Route("/answer/<string:session_id>/fork", sessions.Fork, "sessions"),
    Route("/answer/<string:session_id>/rewind", sessions.Rewind, "sessions"),
    Route("/v1/chat/completions", chat.ChatCompletions, "openai", alias="/chat/completions"),
    Route("/v1/completions", completions.Completions, "openai", alias="/completions"),
    Route("/v1/embeddings", embeddings.OpenAIEmbeddings, "openai", alias="/embeddings"),
    Route("/v1/models", listing.ModelList, "openai"),
    Route("/v1/models/<path:model>", listing.OneModel, "openai", alias="/models/<path:model>"),
    Route("/tokenize", tokens.Tokenize, "openai"),
    Route("/detokenize", tokens.Detokenize, "openai"),
    Route("/v1/rerank", rerank.Rerank, "openai", alias="/rerank"),
    Route("/v1/messages", messages.Messages, "anthropic", alias="/messages"),
    Route("/v1/messages/count_tokens", counting.CountTokens, "anthropic", alias="/messages/count_tokens"),
    Route("/v1/responses", responses.Responses, "openai", alias="/responses"),
    Route("/v1/responses/<string:response_id>", responses.OneResponse, "openai",
          alias="/responses/<string:response_id>"),
    Route("/v1/responses/<string:response_id>/cancel", responses.CancelResponse, "openai",
          alias="/responses/<string:response_id>/cancel"),
    Route("/v1/responses/<string:response_id>/input_items", responses.ResponseInput, "openai",
          alias="/responses/<string:response_id>/input_items"),
    Route("/gpt/<string:personality>", personas.Gpt, "personalities"),
    Route("/gpt-socket/<string:personality>", sockets.GptSocket, "personalities", websocket=True),
    Route("/toil/<string:personality>", personas.Toil, "personalities"),
    Route("/describe/<string:personality>", personas.Describe, "personalities"),
    Route("/personalities", personas.Personalities, "personalities"),
    Route("/embedding/document", personas.EmbeddingDocument, "personalities"),
    Route("/embedding/query", personas.EmbeddingQuery, "personalities"),
    Route("/knowledge", knowledge.Knowledge, "knowledge"),
    Route("/knowledge/<string:name>", knowledge.OneKnowledge, "knowledge"),
    Route("/knowledge/<string:name>/documents", knowledge.KnowledgeDocs, "knowledge"),
    Route("/knowledge/<string:name>/documents/<string:document_id>", knowledge.KnowledgeDoc, "knowledge"),
    Route("/knowledge/<string:name>/files", knowledge.KnowledgeFiles, "knowledge"),
    Route("/knowledge/<string:name>/sources", knowledge.KnowledgeSourceList, "knowledge"),
    Route("/knowledge/<string:name>/sources/<string:source_id>", knowledge.OneKnowledgeSource, "knowledge"),
    Route("/knowledge/<string:name>/refresh", knowledge.RefreshKnowledge, "knowledge"),
    Route("/knowledge/<string:name>/reindex", knowledge.ReindexKnowledge, "knowledge"),
    Route("/knowledge/<string:name>/search", knowledge.SearchKnowledge, "knowledge"),
    *jobs.ROUTES,
    *files.ROUTES,
    *batches.ROUTES,
    *summaries.ROUTES,
    Route("/assistant/v1/rag", assistant.AssistantRag, "knowledge"),
    Route("/assistant/v1/assist", assistant.Assist, "knowledge"),
    Route("/models", models.Models, "models"),
    Route("/models/model", models.Switch, "models"),
    *profiles.ROUTES,
    Route("/models/available", gallery.AvailableModels, "models"),
    Route("/models/apply", gallery.ApplyModel, "models"),
    Route("/models/jobs", gallery.ModelJobs, "models"),
    Route("/models/jobs/<string:job_id>", gallery.ModelJob, "models"),
    Route("/auth", keys.Whoami, "keys"),
    Route("/auth/key", keys.NewKey, "keys"),
    Route("/auth/keys", keys.KeyList, "keys"),
    Route("/auth/keys/<string:key_id>", keys.OneKey, "keys"),
    Route("/auth/keys/<string:key_id>/rotate", keys.Rotate, "keys"),
    Route("/healthz", health.Healthz, "server"),
    Route("/readyz", health.Readyz, "server"),
    Route("/metrics", metrics.Metrics, "server"),
    Route("/metrics/autoscaler", metrics.Autoscaler, "server"),
    Route("/openapi.json", docs.OpenApi, "server"),
    Route("/docs", docs.Docs, "server"),
    Route("/docs/<string:name>", docs.DocsFile, "server"),
    *bindings.ROUTES,
    *page.ROUTES,
)


@dataclass(frozen=True)
class Parts:
    """The rooms below that requests are answered with."""

    keys: Keys
    admissions: Admissions
    profiles: Profiles
    personas: Personas
    sessions: Sessions
    engine: Engine
    grounding: Grounding
    chat: Chat
    idempotency: Idempotency
    tally: metrics.Tally


@dataclass(frozen=True)
class Room:
    """What every resource has at hand. One a worker process."""

    settings: Settings
    parts: Parts
    places: threading.Semaphore                 # of requests that may wait for long: answers, changes, switches
    runs: threading.Semaphore                   # of answers that belong to an Idempotency-Key, beside its requests
    drain: Drain
    sockets: Switchboard

    @functools.cached_property
    def openapi(self) -> dict[str, Any]:
        return openapi.document(ROUTES)

    @functools.cached_property
    def desk(self) -> Desk:
        return Desk(self, bindings.KINDS)

    @functools.cached_property
    def jobs(self) -> JobStore:
        return open_jobs(self.settings)

    @functools.cached_property
    def uploads(self) -> UploadStore:
        return open_uploads(self.settings)

    @functools.cached_property
    def model_jobs(self) -> Jobs:
        return jobs_of(self.settings)


def build_parts(settings: Settings, control: str, authkey: bytes) -> Parts:
    """The real parts, talking to the supervisor at `control`. Call after fork: nothing here is shared with a parent."""
    data: Path = settings.data_dir
    configured = Profiles(data / "config.json", settings)
    store = open_store(settings, prepare=False)
    kept, engine, tally = Sessions(store), Engine(control, authkey), metrics.Tally(control, authkey)
    admissions = Admissions(control, authkey)
    grounding = Grounding(settings, configured, engine, admissions.count_tokens)
    tally.start()
    return Parts(keys=Keys(data, settings), admissions=admissions, profiles=configured,
                 personas=Personas(data / FOLDER, settings.rag_length, settings.rag_helper), sessions=kept,
                 engine=engine, grounding=grounding,
                 chat=Chat(settings, configured, kept, engine, grounding),
                 idempotency=Idempotency(open_kept(settings)), tally=tally)


def create_app(settings: Settings, parts: Parts, drain: Drain | None = None) -> Flask:
    """The application over `parts`. Its `extensions["parley"]` is the `Room`."""
    app = Flask("parley", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    places = max(1, settings.threads - SPARE_THREADS)
    drain = drain or Drain()
    room = Room(settings, parts, threading.Semaphore(places), threading.Semaphore(places), drain,
                Switchboard(settings, drain))
    app.extensions["parley"] = room
    frame.install(app)
    metrics.install(app, parts.tally)
    loopback = is_loopback(settings.host)
    app.before_request(lambda: hosts.check(request.environ.get("HTTP_HOST"), settings.allowed_hosts, loopback))
    app.before_request(lambda: None if request.endpoint == "healthz" else room.drain.refuse_new())
    register(PlainApi(app), Gate(app, parts.keys, parts.admissions), room, ROUTES)
    return app
