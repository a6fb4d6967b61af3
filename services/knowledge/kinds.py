"""What kind of document some bytes are: by their first ones, by what was said of them, and by their name."""

from __future__ import annotations

import re

from services.errors import UnsupportedMedia

HTML, FEED, XML, TEXT, MARKDOWN = "text/html", "application/rss+xml", "application/xml", "text/plain", "text/markdown"
JSON, CSV, PDF, ZIP = "application/json", "text/csv", "application/pdf", "application/zip"
_OFFICE = "application/vnd.openxmlformats-officedocument."
DOCX, PPTX = _OFFICE + "wordprocessingml.document", _OFFICE + "presentationml.presentation"
XLSX, ODT = _OFFICE + "spreadsheetml.sheet", "application/vnd.oasis.opendocument.text"
ZIPPED = {DOCX: "word/document.xml", PPTX: "ppt/presentation.xml", XLSX: "xl/workbook.xml", ODT: "content.xml"}

_SUFFIXES = {"html": HTML, "htm": HTML, "xhtml": HTML, "rss": FEED, "atom": FEED, "xml": XML, "txt": TEXT, "text": TEXT,
             "log": TEXT, "rst": TEXT, "md": MARKDOWN, "markdown": MARKDOWN, "json": JSON, "jsonl": TEXT,
             "ndjson": TEXT, "csv": CSV, "tsv": CSV, "pdf": PDF, "docx": DOCX, "pptx": PPTX, "xlsx": XLSX, "odt": ODT}
_SAID = {"application/xhtml+xml": HTML, "application/atom+xml": FEED, "application/rdf+xml": FEED, "text/xml": XML,
         "text/x-markdown": MARKDOWN, "application/csv": CSV, "text/tab-separated-values": CSV,
         **{kind: kind for kind in (HTML, FEED, XML, TEXT, MARKDOWN, JSON, CSV, PDF, DOCX, PPTX, XLSX, ODT)}}
_UNSAID = ("", "application/octet-stream", "binary/octet-stream", "application/x-download", "application/zip")
_NO_TEXT = ("image/", "audio/", "video/", "font/", "model/")
_PROGRAMS = ("text/css", "text/javascript", "text/event-stream", "text/vnd.wap")
_FEED = re.compile(rb"<(rss|feed|rdf:RDF)[\s>]", re.IGNORECASE)
_MARKUP = re.compile(rb"<(!doctype\s+html|html|head|body|title|main|article|div|p|h1)[\s>]", re.IGNORECASE)
EXPECTED = "expected HTML, RSS or Atom, plain text, Markdown, JSON, CSV, PDF, docx, pptx, xlsx or odt"


def check(media_type: str, name: str) -> None:
    """Raises `UnsupportedMedia` for a media type of which no text is read, before its bytes are asked for."""
    if media_type in _SAID or media_type in _UNSAID or media_type.endswith(("+json", "+xml")):
        if media_type != "image/svg+xml":
            return
    elif media_type.startswith("text/") and not media_type.startswith(_PROGRAMS):
        return
    raise _unsupported(name, f"it is {media_type[:80]}")


def kind(data: bytes, media_type: str, name: str) -> str:
    """What `data` is. Raises `UnsupportedMedia`."""
    check(media_type, name)
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"%PDF-" in data[:1024]:
        return PDF
    if start.startswith(b"PK\x03\x04"):
        return _zipped(data, media_type, name)
    suffix = _SUFFIXES.get(name.partition("?")[0].rpartition(".")[2].lower(), "")
    said = _SAID.get(media_type) or (JSON if media_type.endswith("+json") else
                                     XML if media_type.endswith("+xml") else "")
    if (said in ("", XML) and suffix in ("", XML)) or (start.startswith(b"<?xml") and said in (HTML, TEXT)):
        found = _by_content(start) or said or suffix
    else:
        found = said or suffix
    if said == TEXT and suffix in (MARKDOWN, CSV, JSON):        # as web servers say that know no better
        found = suffix
    if found in (PDF, *ZIPPED):
        raise _unsupported(name, f"it is said to be {found}, and is not")
    if b"\0" in data[:1024] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unsupported(name, "it is no text")
    return found or TEXT


def _by_content(start: bytes) -> str:
    if _FEED.search(start):
        return FEED
    if start.startswith(b"<?xml"):
        return HTML if b"<html" in start.lower() else XML
    return HTML if _MARKUP.search(start) else ""


def _zipped(data: bytes, media_type: str, name: str) -> str:
    """Office files say what they are by the files in them, whose names stand in the clear at the archive's end."""
    said = _SAID.get(media_type) or _SUFFIXES.get(name.rpartition(".")[2].lower(), "")
    if said in ZIPPED and ZIPPED[said].encode() in data:
        return said
    for found, inside in ZIPPED.items():
        if inside.encode() in data and (found != ODT or b"opendocument.text" in data[:200]):
            return found
    raise _unsupported(name, "it is a zip archive of something else")


def _unsupported(name: str, why: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"{name[-200:]!r} holds no text that can be read: {why}; {EXPECTED}", param="url")
