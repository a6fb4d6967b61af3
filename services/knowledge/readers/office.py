"""Office files (docx, pptx, xlsx, odt): XML in zip archives, of which the text is all that is read."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable

from services.errors import ParleyError
from services.knowledge import archives, kinds
from services.knowledge.documents import Document, one_line
from services.knowledge.readers.building import Builder, Unreadable
from services.knowledge.readers.xml import Attributes, Handler, walk

_SLIDE = re.compile(r"ppt/slides/slide([0-9]{1,6})\.xml")
_HEADING = re.compile(r"(?:heading [1-9]|title)", re.IGNORECASE)


class Parts:
    """The files of an Office document, by name."""

    def __init__(self, data: bytes) -> None:
        try:
            self._archive = archives.opened(data, archives.PARTS)
        except ParleyError as error:
            raise Unreadable(error.message) from None
        self._left = archives.TOTAL_BYTES
        self.names = self._archive.namelist()

    def tell(self, name: str, handler: Handler, needed: bool = False) -> None:
        """Walk through the XML file `name`; nothing when there is none, unless `needed`."""
        if name not in self.names:
            if needed:
                raise Unreadable(f"{name} is missing in it")
            return
        try:
            data = archives.content_of(self._archive, self._archive.getinfo(name), min(self._left, 64 << 20))
        except (ParleyError, zipfile.BadZipFile) as error:
            raise Unreadable(str(error)) from None
        self._left -= len(data)
        walk(data, handler)


class _Flow(Handler):
    """Paragraphs, and tables with ` | ` between their cells. Subclasses say what is a heading."""

    TEXT: set[str] = {"t"}                  # elements with text
    SKIPPED: set[str] = {"Fallback", "instrText", "delText"}
    BREAKS = {"br": "\n", "cr": "\n", "tab": " ", "line-break": "\n", "s": " "}

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._line: list[str] = []          # of the paragraph
        self._cells: list[str] = []         # of the row
        self._rows: list[str] = []
        self._tables = self._skipping = self._texts = 0
        self._heading = 0

    def heading(self, name: str, attributes: Attributes) -> int:
        """The level of the heading that the paragraph is, by this element in it; 0: this element does not say."""
        return 0

    def start(self, name: str, attributes: Attributes) -> None:
        self._skipping += name in self.SKIPPED
        self._texts += name in self.TEXT
        self._tables += name in ("tbl", "table")
        self._heading = self.heading(name, attributes) or self._heading
        if name in self.BREAKS:
            self._line.append(self.BREAKS[name])

    def text(self, text: str) -> None:
        if self._texts and not self._skipping:
            self._line.append(text)

    def end(self, name: str) -> None:
        self._skipping -= name in self.SKIPPED
        self._texts -= name in self.TEXT
        if name in ("p", "h"):
            self._paragraph()
        elif name in ("tr", "table-row"):
            self._rows.append(" | ".join(self._cells))
            self._cells = []
        elif name in ("tc", "table-cell"):
            self._cells.append(one_line("".join(self._line), 2000))
            self._line = []
        elif name in ("tbl", "table"):
            self._tables -= 1
            self.builder.add("\n".join(self._rows))
            self._rows = []

    def _paragraph(self) -> None:
        if self._tables:
            self._line.append(" ")
            return
        text, level = "".join(self._line), self._heading
        self._line, self._heading = [], 0
        if level:
            self.builder.heading(text, level)
        else:
            self.builder.add(text.strip())


class _Word(_Flow):
    def __init__(self, builder: Builder, headings: dict[str, int]) -> None:
        super().__init__(builder)
        self._headings = headings           # id of a style -> level

    def heading(self, name: str, attributes: Attributes) -> int:
        return self._headings.get(attributes.get("val", ""), 0) if name == "pStyle" else 0


class _Styles(Handler):
    """Headings by the ids of their styles, which differ by language; their names do not."""

    def __init__(self) -> None:
        self.headings: dict[str, int] = {}
        self._id = ""

    def start(self, name: str, attributes: Attributes) -> None:
        if name == "style":
            self._id = attributes.get("styleId", "")
        elif name == "name" and _HEADING.fullmatch(attributes.get("val", "")):
            level = attributes["val"][-1]
            self.headings[self._id] = min(int(level), 6) if level.isdigit() else 1


class _Writer(_Flow):
    TEXT = {"p", "h"}
    SKIPPED = {"annotation", "tracked-changes", "note-citation"}

    def heading(self, name: str, attributes: Attributes) -> int:
        level = attributes.get("outline-level", "1")
        return (min(int(level), 6) if level.isdigit() and len(level) < 3 else 1) if name == "h" else 0


class _Title(Handler):
    def __init__(self) -> None:
        self.title = ""
        self._open = False

    def start(self, name: str, attributes: Attributes) -> None:
        self._open = name == "title"

    def end(self, name: str) -> None:
        self._open = False

    def text(self, text: str) -> None:
        self.title += text if self._open else ""


class _Strings(Handler):
    """A workbook's strings, which its cells have by number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._pieces: list[str] = []
        self._open = self._phonetic = False

    def start(self, name: str, attributes: Attributes) -> None:
        self._open = name == "t"
        self._phonetic = self._phonetic or name == "rPh"

    def end(self, name: str) -> None:
        self._open = False
        self._phonetic = self._phonetic and name != "rPh"
        if name == "si":
            self.all.append("".join(self._pieces))
            self._pieces = []

    def text(self, text: str) -> None:
        if self._open and not self._phonetic:
            self._pieces.append(text)


class _Sheet(Handler):
    def __init__(self, strings: list[str], add: Callable[[str], None]) -> None:
        self._strings, self._add = strings, add
        self._cells: list[str] = []
        self._type, self._value, self._open = "", "", False

    def start(self, name: str, attributes: Attributes) -> None:
        if name == "c":
            self._type, self._value = attributes.get("t", ""), ""
        self._open = name in ("v", "t")

    def text(self, text: str) -> None:
        self._value += text if self._open else ""

    def end(self, name: str) -> None:
        self._open = False
        if name == "c":
            self._cells.append(one_line(self._shown(), 2000))
        elif name == "row":
            self._add(" | ".join(self._cells) if any(self._cells) else "")
            self._cells = []

    def _shown(self) -> str:
        if self._type == "s":
            known = self._value.isdigit() and len(self._value) < 9 and int(self._value) < len(self._strings)
            return self._strings[int(self._value)] if known else ""
        return {"0": "FALSE", "1": "TRUE"}.get(self._value, "") if self._type == "b" else self._value


class _Named(Handler):
    """Elements `element` by the attributes `key` and `value`: sheets by name, and parts by the ids of relations."""

    def __init__(self, element: str, key: str, value: str) -> None:
        self.found: dict[str, str] = {}
        self._element, self._key, self._value = element, key, value

    def start(self, name: str, attributes: Attributes) -> None:
        if name == self._element:
            self.found[attributes.get(self._key, "")] = attributes.get(self._value, "")


def _word(parts: Parts, builder: Builder) -> None:
    styles = _Styles()
    parts.tell("word/styles.xml", styles)
    parts.tell("word/document.xml", _Word(builder, styles.headings), needed=True)


def _slides(parts: Parts, builder: Builder) -> None:
    slides = sorted((int(found[1]), name) for name in parts.names if (found := _SLIDE.fullmatch(name)))
    for number, (_, name) in enumerate(slides, 1):
        builder.section(f"slide {number}")
        parts.tell(name, _Flow(builder))


def _workbook(parts: Parts, builder: Builder) -> None:
    strings, sheets, files = _Strings(), _Named("sheet", "name", "id"), _Named("Relationship", "Id", "Target")
    parts.tell("xl/sharedStrings.xml", strings)
    parts.tell("xl/workbook.xml", sheets, needed=True)
    parts.tell("xl/_rels/workbook.xml.rels", files)
    for name, relation in sheets.found.items():
        rows: list[str] = []
        target = files.found.get(relation, "")
        parts.tell(target[1:] if target.startswith("/") else f"xl/{target}", _Sheet(strings.all, rows.append))
        builder.heading(name)
        builder.add("\n".join(row for row in rows if row))


def _writer(parts: Parts, builder: Builder) -> None:
    parts.tell("content.xml", _Writer(builder), needed=True)


_READERS = {kinds.DOCX: (_word, "docProps/core.xml"), kinds.PPTX: (_slides, "docProps/core.xml"),
            kinds.XLSX: (_workbook, "docProps/core.xml"), kinds.ODT: (_writer, "meta.xml")}


def read(data: bytes, charset: str | None, name: str, kind: str) -> Document:
    reader, about = _READERS[kind]
    parts, builder, title = Parts(data), Builder(name, kind), _Title()
    parts.tell(about, title)
    builder.title = title.title
    reader(parts, builder)
    return builder.document()
