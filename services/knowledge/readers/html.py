"""The main text of a web page (S4.16): its `<main>`, its only `<article>`, or its body without what is around."""

from __future__ import annotations

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

from services.errors import BadRequest
from services.knowledge import urls
from services.knowledge.documents import Document, Link, one_line
from services.knowledge.readers.building import Builder
from services.knowledge.readers.text import decoded

MAX_NODES, MAX_LINKS = 300_000, 1000
_NEVER = {"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "embed", "canvas", "audio",
          "video", "select", "button", "textarea", "dialog", "nav", "head", "datalist"}
_AROUND = _NEVER | {"header", "footer", "aside"}
_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_BLOCKS = {"p", "div", "section", "article", "main", "ul", "ol", "dl", "table", "blockquote", "pre", "figure", "hr",
           "form", "fieldset", "address", "details", "summary", "figcaption", "body", "header", "footer", "aside"}
_LINES = {"li", "tr", "dt", "dd", "caption", "option", "legend"}


def read(data: bytes, charset: str | None, name: str, kind: str) -> Document:
    page = LexborHTMLParser(decoded(data, charset))
    builder = Builder(name, kind)
    title = page.css_first("head > title") or page.css_first("title") or page.css_first("h1")
    builder.title = title.text() if title else ""
    links = _links(page, name)
    mains, articles = page.css("main, [role=main]"), page.css("article")
    root = mains[0] if mains else articles[0] if len(articles) == 1 else page.body
    if root is not None:
        _Text(builder, _NEVER if mains or len(articles) == 1 else _AROUND).walk(root)
    return builder.document(links)


def text_of(fragment: str) -> str:
    """The text of a piece of HTML, as feeds carry it."""
    if "<" not in fragment and "&" not in fragment:
        return fragment
    return read(fragment.encode(), "utf-8", "", "").text


def _links(page: LexborHTMLParser, name: str) -> list[Link]:
    """Where the page points to by http(s), each place once. Relative ones only where the page came by a URL."""
    try:
        base = urls.parse(name)
        node = page.css_first("base[href]")
        base = urls.join(base, node.attributes["href"] or "") if node else base
    except BadRequest:
        return []
    found: dict[str, Link] = {}
    for node in page.css("a[href]"):
        try:
            url = str(urls.join(base, (node.attributes["href"] or "").strip()))
        except BadRequest:      # mailto:, javascript:, or nothing that could be fetched
            continue
        found.setdefault(url, Link(url, one_line(node.text())))
        if len(found) == MAX_LINKS:
            break
    return list(found.values())


class _Text:
    """Walks a tree without recursion, since pages nest as deeply as they like."""

    def __init__(self, builder: Builder, skipped: set[str]) -> None:
        self._builder, self._skipped = builder, skipped
        self._pieces: list[str] = []
        self._as_it_is = 0          # how many <pre> are open

    def walk(self, root: LexborNode) -> None:
        node: LexborNode | None = root
        depth = 0
        for _ in range(MAX_NODES):
            if node is None:
                break
            if self._enter(node) and node.child is not None:
                node, depth = node.child, depth + 1
            else:
                node, depth = self._after(node, depth)
        else:
            self._builder.full = True
        self._flush()

    def _after(self, node: LexborNode, depth: int) -> tuple[LexborNode | None, int]:
        """What comes after `node` and all in it, within the root; None when it is the last."""
        self._leave(node)
        while depth and node.next is None:
            assert node.parent is not None
            node, depth = node.parent, depth - 1
            self._leave(node)
        return (node.next if depth else None), depth

    def _enter(self, node: LexborNode) -> bool:
        """Whether to go into `node`."""
        tag = node.tag
        if tag == "-text":
            self._say(node.text_content or "")
            return False
        if tag in self._skipped or "hidden" in node.attributes or node.attributes.get("aria-hidden") == "true":
            return False
        if tag in _HEADINGS:
            self._flush()
            self._builder.heading(node.text(), _HEADINGS[tag])
            return False
        self._break(tag)
        if tag == "br":
            self._pieces.append("\n")
        if tag == "li":
            self._pieces.append("- ")
        self._as_it_is += tag == "pre"
        return True

    def _leave(self, node: LexborNode) -> None:
        if node.tag in ("td", "th") and node.next is not None:
            self._pieces.append(" | ")
        if node.tag not in self._skipped and node.tag not in _HEADINGS:
            self._break(node.tag)
            self._as_it_is -= node.tag == "pre" and self._as_it_is > 0

    def _break(self, tag: str | None) -> None:
        if tag in _BLOCKS:
            self._pieces.append("\n\n")
        elif tag in _LINES and self._pieces and not self._pieces[-1].endswith("\n"):
            self._pieces.append("\n")

    def _say(self, text: str) -> None:
        if not self._as_it_is:
            text = re.sub(r"\s+", " ", text)
            if not self._pieces or self._pieces[-1].endswith(("\n", " ")):
                text = text.lstrip()
        if text:
            self._pieces.append(text)

    def _flush(self) -> None:
        self._builder.add("".join(self._pieces).replace(" \n", "\n"))
        self._pieces.clear()
