"""PDF by pypdf: the text of each page, for as long as there is time."""

from __future__ import annotations

import io
import time

from pypdf import PasswordType, PdfReader
from pypdf.errors import PyPdfError

from services.knowledge.documents import Document
from services.knowledge.readers.building import Builder, Unreadable

SECONDS = 8.0               # of processor time, after which the pages that are left are left out
MAX_PAGES = 2000


def read(data: bytes, charset: str | None, name: str, kind: str) -> Document:
    builder, until = Builder(name, kind), time.process_time() + SECONDS
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise Unreadable("it is locked with a password")
        builder.title = str((reader.metadata and reader.metadata.title) or "")
        for number, page in enumerate(reader.pages, 1):
            if number > MAX_PAGES or time.process_time() > until:
                builder.full = True
                break
            builder.section(f"page {number}")
            builder.add(page.extract_text())
    except (PyPdfError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
            NotImplementedError, RecursionError, OSError) as error:     # what the library lets through of broken files
        raise Unreadable(f"it is a damaged PDF ({str(error)[:200] or type(error).__name__})") from None
    return builder.document()
