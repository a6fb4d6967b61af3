"""Plain text, Markdown, JSON and CSV; and how bytes become text at all."""

from __future__ import annotations

import codecs
import csv
import io
import re

from charset_normalizer import from_bytes

from services.knowledge import kinds
from services.knowledge.documents import Document
from services.knowledge.readers.building import Builder

SAMPLE = 64 << 10           # bytes that a guess of the encoding is made of
FEW = 32                    # bytes beyond ASCII that are too few for a guess
LONG = 1024                 # bytes of what may be the beginning of a page (the least FETCH_MAX_BYTES)
WESTERN = 0.25              # of the bytes of a text with Latin letters have at most an accent
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_NO_CHARSETS = {"utf-7", "idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"}
_AS_BROWSERS_DO = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "ascii": "cp1252",
                   "us-ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift-jis": "cp932"}
_DECLARED = re.compile(rb"<meta[^>]{1,200}?charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})|"
                       rb"<\?xml[^>]{1,100}?encoding\s*=\s*[\"']([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\s*")


def decoded(data: bytes, charset: str | None) -> str:
    """`data` as text: by its mark, else by what was said or what it says itself, else UTF-8, else by a guess."""
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return data[len(bom):].decode(encoding, "replace")
    found = _DECLARED.search(data[:2048])
    declared = (found[1] or found[2]).decode() if found else None
    for name in (charset, declared, "utf-8"):
        if name and (text := _strictly(data, name)) is not None:
            return text
    sample = data[:SAMPLE]
    letters = sum(byte > 127 for byte in sample)
    guess = from_bytes(sample).best() if letters > max(len(sample) * WESTERN, FEW) else None
    return data.decode(guess.encoding if guess else "cp1252", "replace")


def _strictly(data: bytes, name: str) -> str | None:
    """`data` by the encoding `name`; None when it is not in it. A long one may be cut within its last character."""
    name = name.lower().replace("_", "-")
    if name in _NO_CHARSETS:
        return None
    try:
        return codecs.getincrementaldecoder(_AS_BROWSERS_DO.get(name, name))("strict").decode(data, len(data) < LONG)
    except (LookupError, ValueError, TypeError):
        return None


def plain(data: bytes, charset: str | None, name: str, kind: str) -> Document:
    builder = Builder(name, kind)
    builder.add(decoded(data, charset))
    return builder.document()


def markdown(data: bytes, charset: str | None, name: str, kind: str) -> Document:
    builder, lines, fenced = Builder(name, kind), [""][:0], False
    for line in decoded(data, charset).splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        if not fenced and (found := _HEADING.fullmatch(line[:500])):
            builder.add("\n".join(lines))
            lines = []
            builder.heading(found[2], len(found[1]))
        else:
            lines.append(line)
    builder.add("\n".join(lines))
    return builder.document()


def table(data: bytes, charset: str | None, name: str, kind: str) -> Document:
    """CSV by whatever is between its columns; each row a line with ` | ` between."""
    text = decoded(data, charset)
    first = text.partition("\n")[0]
    builder = Builder(name, kind)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=max("\t;,|", key=first.count)))
    except csv.Error:
        builder.add(text)
    else:
        builder.add("\n".join(" | ".join(cell.strip() for cell in row) for row in rows))
    return builder.document()


READERS = {kinds.TEXT: plain, kinds.JSON: plain, kinds.MARKDOWN: markdown, kinds.CSV: table}
