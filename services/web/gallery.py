"""LocalAI's `/models/available`, `/models/apply` and `/models/jobs`: models of galleries, put into the folder. That a
job can be cancelled is ours.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Response, request
from pydantic import BaseModel, Field, RootModel

from services.engine.definitions import Apply
from services.engine.model_jobs import Job
from services.errors import BadRequest, ConfigError
from services.jobs.shown import moment
from services.web.bodies import Body
from services.web.frame import json_response
from services.web.routes import Endpoint, op, taken


class FileBody(Body):
    """A file to get."""

    filename: str = Field(min_length=1, max_length=500)
    uri: str = Field(min_length=1, max_length=4000, description="https://, huggingface://owner/repo/file, github:")
    sha256: str | None = Field(None, max_length=64)


class TemplateBody(Body):
    """A prompt template, which becomes `<name>.tmpl`."""

    name: str = Field(min_length=1, max_length=200)
    content: str = Field(max_length=1 << 18)


class ApplyBody(Body):
    """What to put into the folder of models: `id`, `url` or `config_file` says what; the others add to it."""

    id: str | None = Field(None, max_length=400, description="gallery@name, or a name in any gallery")
    url: str | None = Field(None, max_length=4000, description="of a definition, in YAML")
    config_url: str | None = Field(None, max_length=4000, description="the same as url")
    config_file: str | dict[str, Any] | None = Field(None, description="a model's YAML")
    name: str | None = Field(None, max_length=200, description="of the model; default: the definition's")
    files: list[FileBody] | None = Field(None, max_length=1000)
    prompt_templates: list[TemplateBody] | None = Field(None, max_length=100)
    overrides: dict[str, Any] | None = Field(None, description="what is to stand in the model's YAML instead")
    variant: str | None = Field(None, max_length=400, description="without effect")
    description: str | None = Field(None, description="without effect, as the next four")
    license: str | None = None
    icon: str | None = None
    urls: list[str] | None = None
    tags: list[str] | None = None


class Entry(BaseModel):
    name: str
    description: str | None = None
    license: str | None = None
    installed: bool = Field(description="whether a file of its name is in the folder of models")


class Available(RootModel[list[Entry]]):
    """All entries of all galleries."""


class Applied(BaseModel):
    uuid: str
    status: str = Field(description="where to ask how it is")


class JobReply(BaseModel):
    uuid: str
    processed: bool = Field(description="done, well or not")
    error: str | None
    message: str = Field(description="queued, processing, cancelling, completed, or what is wrong")
    progress: float = Field(description="per cent")
    gallery_element_name: str
    file_name: str
    file_size: str
    downloaded_size: str
    created: str | None


class JobReplies(RootModel[dict[str, JobReply]]):
    """Jobs by their ids, the newest first."""


class AvailableModels(Endpoint):
    @op("The models of LocalAI's galleries", scope="models:read", reply=Available, errors=(503,))
    def get(self) -> Response:
        with taken(self.room.places):
            return json_response(self.room.model_jobs.galleries.available())


class ApplyModel(Endpoint):
    @op("Put a model of a gallery into the folder, in the background", scope="admin", body=ApplyBody, reply=Applied,
        errors=(404, 429))
    def post(self, body: ApplyBody) -> Response:
        jobs = self.room.model_jobs
        try:
            wanted = Apply.of(body.model_dump(exclude_none=True))
        except ConfigError as error:
            raise BadRequest(error.message, param="config_file") from None
        if wanted.id:
            jobs.galleries.asked(wanted.id)
        job = jobs.begin(wanted)
        return json_response({"uuid": job.uuid, "status": f"{request.host_url}models/jobs/{job.uuid}"})


class ModelJobs(Endpoint):
    @op("How all jobs of /models/apply are", scope="models:read", reply=JobReplies)
    def get(self) -> Response:
        return json_response({job.uuid: _told(job) for job in self.room.model_jobs.all()})


class ModelJob(Endpoint):
    @op("How a job of /models/apply is", scope="models:read", reply=JobReply, errors=(404,))
    def get(self, job_id: str) -> Response:
        return json_response(_told(self.room.model_jobs.get(job_id)))

    @op("Cancel a job of /models/apply that is not done; the job as it is then", scope="admin", reply=JobReply,
        errors=(404, 507))
    def delete(self, job_id: str) -> Response:
        return json_response(_told(self.room.model_jobs.cancel(job_id)))


def _told(job: Job) -> dict[str, Any]:
    return {**asdict(job), "created": moment(job.created or None)}
