"""Row R11, and the kinds of documents: what they say comes out, and what they do to their reader stays in the child."""

import io
import subprocess
import sys
import zipfile

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from services.errors import Unprocessable, UnsupportedMedia
from services.knowledge import extract as extracting
from services.knowledge import kinds, reading
from services.knowledge.extract import extract
from services.knowledge.readers.html import text_of
from services.knowledge.readers.text import decoded

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


@pytest.fixture
def read(monkeypatch):
    """`extract` without its child, for what takes no time and does no harm."""
    monkeypatch.setattr(reading.signal, "setitimer", lambda *_: None)
    monkeypatch.setattr(reading.sys, "addaudithook", lambda *_: None)
    monkeypatch.setattr(extracting, "_asked", reading.answer)
    return extract


def zipped(files: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pdf(*pages: str, password: str | None = None, title: str = "") -> bytes:
    writer = PdfWriter()
    for text in pages:
        page = writer.add_blank_page(300, 300)
        font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
                                 NameObject("/BaseFont"): NameObject("/Helvetica")})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): DictionaryObject(
            {NameObject("/F1"): writer._add_object(font)})})
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
    if title:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(password)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def docx(body: str, **more: str) -> bytes:
    return zipped({"word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>", **more})


def paragraph(text: str, style: str = "") -> str:
    look = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{look}<w:r><w:t>{text}</w:t></w:r></w:p>"


# ---------------------------------------------------------------- web pages

PAGE = b"""<!doctype html><html><head><title>A &amp; B</title><style>x{}</style></head><body>
<nav><a href="/menu">menu</a></nav><main><h1>Head <i>line</i></h1><p>One <b>bold</b>word, <a href="next?a=1#frag">next
</a>.</p><ul><li>first<li>second</ul><table><tr><th>A<th>B<tr><td>1<td>2</table><pre>if x:
    y</pre><script>evil()</script><p hidden>no</p><span aria-hidden=true>no</span><!-- no --><h2>More</h2>end</main>
<footer>no</footer></body></html>"""


def test_the_main_text_of_a_page(read):
    found = read(PAGE, "text/html", "https://example.com/a/b")
    assert found.title == "A & B" and found.media_type == "text/html" and not found.truncated
    assert found.text == ("# Head line\n\nOne boldword, next .\n\n- first\n- second\n\nA | B\n1 | 2\n\nif x:\n    y\n\n"
                          "## More\n\nend")
    assert [(part.title, found.part(part)[:10]) for part in found.sections] == [("Head line", "# Head lin"),
                                                                                ("More", "## More\n\ne")]
    assert [(link.url, link.text) for link in found.links] == [
        ("https://example.com/menu", "menu"), ("https://example.com/a/next?a=1", "next")]


@pytest.mark.parametrize(("html", "text"), [
    ("<nav>n</nav><p>a</p><article>b</article><footer>f</footer>", "b"),
    ("<header>n</header><article>a</article><article>b</article><aside>f</aside>", "a\n\nb"),
    ("<div role=main>m</div><p>x", "m"), ("<p>only", "only"), ("", ""), ("plain", "plain"),
    ("a<br>b<br><br>c", "a\nb\n\nc"),
    ("<p>a&nbsp;b\u200b\u202ec\U000e0041", "a bc"), ("<p>  a \n\n b  <i> c</i></p>", "a b c"),
    ("<svg><text>no</text></svg><template>no</template><p>yes", "yes")])
def test_pages_of_other_shapes(read, html, text):
    assert read(html.encode(), "text/html", "page").text == text


def test_links_are_places_on_the_web(read):
    page = b"""<base href="/b/"><a href="c">c</a><a href="mailto:a@b">m</a><a href="javascript:x()">j</a>
        <a href="http://127.1/">n</a><a href="//other.example/">o</a><a href="c#x">again</a><a href>none</a>"""
    assert [link.url for link in read(page, "text/html", "https://example.com/a/").links] == [
        "https://example.com/b/c", "https://other.example/", "https://example.com/b/"]
    assert read(page, "text/html", "uploaded.html").links == ()


@pytest.mark.parametrize(("piece", "times"), [
    (b"<div>", 1_000_000), (b"<b>", 400_000), (b"<table>", 100_000), (b"<a href=x>", 200_000), (b"a=1 ", 400_000),
    (b"&", 2_000_000), (b"<!--", 500_000)],
    ids=["divs", "bold", "tables", "links", "attributes", "ampersands", "comments"])
def test_pages_that_take_long_are_given_up_or_read(piece, times):
    """A second of processor time at most, whatever the parser makes of it."""
    start, end = {b"a=1 ": (b"<p ", b""), b"<b>": (b"", b"x")}.get(piece, (b"", b""))
    try:
        assert isinstance(extract(start + piece * times + end, "text/html", "http://example.com/").text, str)
    except Unprocessable as error:
        assert error.code == "unreadable_document" and error.status == 422


# ---------------------------------------------------------------- encodings

@pytest.mark.parametrize(("data", "charset", "text"), [
    ("é€".encode(), None, "é€"), ("é".encode("latin-1"), None, "é"), ("“é”".encode("cp1252"), "iso-8859-1", "“é”"),
    ("é".encode(), "latin-1", "Ã©"), ("é".encode("latin-1"), "utf-8", "é"), ("é".encode(), "no-such", "é"),
    ("é".encode(), "utf-7", "é"), ("é".encode(), "hex", "é"), (b"\xef\xbb\xbfa", "utf-16", "a"),
    ("aé".encode("utf-16"), None, "aé"), ("привет, как дела?".encode("koi8-r"), "koi8-r", "привет, как дела?"),
    ('<meta charset="windows-1251">привет'.encode("cp1251"), None, '<meta charset="windows-1251">привет'),
    ('<?xml encoding="shift_jis"?>日本'.encode("shift-jis"), None, '<?xml encoding="shift_jis"?>日本'),
    (b"a" * 2000 + b"\xc3", None, "a" * 2000), (b"caf\xe9", None, "café"), (b"\xff\x00\x81", None, "ÿ\x00\ufffd")])
def test_bytes_become_text(data, charset, text):
    assert decoded(data, charset) == text


def test_an_encoding_that_nobody_names_is_guessed():
    text = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 5
    assert decoded(text.encode("cp1251"), None) == text


# ---------------------------------------------------------------- texts, feeds, XML

@pytest.mark.parametrize(("data", "media_type", "name", "kind", "text"), [
    (b"a\r\nb\0c"[:4] + b"b", "text/plain", "", "text/plain", "a\nbb"),
    (b'{"a": [1]}', "application/vnd.api+json", "", "application/json", '{"a": [1]}'),
    (b"a;b\n1;\"x;y\"", "text/csv", "", "text/csv", "a | b\n1 | x;y"),
    (b"a\tb\n1\t2", "", "table.tsv", "text/csv", "a | b\n1 | 2"),
    (b"# T\n\nx", "text/plain", "https://example.com/README.md", "text/markdown", "# T\n\nx"),
    (b"text of no kind", "", "", "text/plain", "text of no kind"),
    (b"<p>x</p>", "", "", "text/html", "x"),
    (b"<p>x</p>", "application/octet-stream", "a.html", "text/html", "x"),
    (b"<p>x</p>", "text/plain", "a.txt", "text/plain", "<p>x</p>"),
    (b'<?xml version="1.0"?><html><body>x</body></html>', "application/xml", "", "text/html", "x"),
    (b"<a><b>x</b><c>y</c></a>", "application/xml", "", "application/xml", "x\ny"),
    (b"log line", "text/x-log", "", "text/plain", "log line")])
def test_texts(read, data, media_type, name, kind, text):
    found = read(data, media_type, name)
    assert (found.media_type, found.text) == (kind, text)


def test_markdown_has_sections(read):
    found = read(b"intro\n# One\na\n```\n# no\n```\n## Two ##\nb", "text/markdown", "x.md")
    assert [(part.title, found.part(part)) for part in found.sections] == [
        ("One", "# One\n\na\n```\n# no\n```"), ("Two", "## Two\n\nb")]
    assert found.title == "One" and found.text.startswith("intro\n\n# One")


RSS = b"""<?xml version="1.0" encoding="utf-8"?><rss version="2.0"><channel><title>News &amp; more</title>
<description>All of &lt;b&gt;it&lt;/b&gt;</description><item><title>First</title><link>/1</link>
<description>&lt;p&gt;Sum &amp;amp; &lt;script&gt;no&lt;/script&gt;mary&lt;/p&gt;</description></item>
<item><title>Second</title></item></channel></rss>"""
ATOM = b"""<feed xmlns="http://www.w3.org/2005/Atom"><title>Atom</title><subtitle>Sub</subtitle><entry><title>E</title>
<link href="http://other.example/e"/><content type="html">&lt;p&gt;Whole&lt;/p&gt;</content></entry></feed>"""


@pytest.mark.parametrize("media_type", ["application/rss+xml", "text/xml", "application/xml", "text/html", ""])
def test_feeds(read, media_type):
    found = read(RSS, media_type, "http://example.com/feed")
    assert found.text == "## News & more\n\nAll of it\n\n# First\n\nSum & mary\n\n# Second"
    assert found.title == "News & more" and [part.title for part in found.sections] == ["First", "Second"]
    assert [link.url for link in found.links][:1] == ["http://example.com/1"]


def test_atom(read):
    found = read(ATOM, "application/atom+xml", "http://example.com/feed")
    assert found.text == "## Atom\n\nSub\n\n# E\n\nWhole" and found.links[0].url == "http://other.example/e"


BILLION = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY a{n} "{f"&a{n - 1 if n else str()};" * 10}">' for n in range(9)) + "]>"
XXE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("head", [BILLION, XXE, '<!DOCTYPE rss>'], ids=["laughs", "xxe", "doctype"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_not_expanded(read, head, encoding):
    for body, kind in (("<rss version='2.0'><channel><title>&e;&a8;</title></channel></rss>", "application/rss+xml"),
                       ("<x>&e;&a8;</x>", "application/xml")):
        with pytest.raises(Unprocessable, match="DOCTYPE"):
            read((head + body).encode(encoding), kind, "http://example.com/feed")


def test_xml_that_nests_too_deeply(read):
    with pytest.raises(Unprocessable, match="nested"):
        read(b"<a>" * 1000 + b"</a>" * 1000, "application/xml", "x")


# ---------------------------------------------------------------- PDF and Office

def test_pdf(read):
    found = read(pdf("First page", "Second page", title="The title"), "application/pdf", "a.pdf")
    assert found.title == "The title" and found.text == "First page\n\nSecond page"
    assert [(part.title, found.part(part)) for part in found.sections] == [("page 1", "First page"),
                                                                            ("page 2", "Second page")]
    assert read(pdf("x", password=""), "text/html", "lying.html").media_type == kinds.PDF


@pytest.mark.parametrize("data", [b"%PDF-1.7", b"%PDF-1.7\n" + b"x" * 5000, pdf("a")[:-400],
                                  pdf("a", password="secret")],
                         ids=["head", "rubbish", "cut", "locked"])
def test_pdfs_that_cannot_be_read(read, data):
    try:
        read(data, "application/pdf", "a.pdf")
    except Unprocessable as error:
        assert error.code == "unreadable_document"


def test_docx(read):
    styles = f"<w:styles {W}><w:style w:styleId='Titre1'><w:name w:val='heading 1'/></w:style></w:styles>"
    table = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("1", "2"))
    body = (paragraph("Head", "Titre1") + "<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r></w:p>" +
            f"<w:tbl><w:tr>{table}</w:tr></w:tbl>" + paragraph("end"))
    found = read(docx(body, **{"word/styles.xml": styles, "docProps/core.xml": "<c><title>Named</title></c>"}),
                 "application/octet-stream", "a.docx")
    assert found.text == "# Head\n\na b\nc\n\n1 | 2\n\nend" and found.title == "Named"
    assert [part.title for part in found.sections] == ["Head"]


def test_pptx_xlsx_odt(read):
    slides = {f"ppt/slides/slide{n}.xml": f"<x><p><r><t>Slide {n}</t></r></p><p><t>text</t></p></x>" for n in (10, 2)}
    found = read(zipped({"ppt/presentation.xml": "<x/>", **slides}), kinds.PPTX, "x")
    assert [(part.title, found.part(part)) for part in found.sections] == [("slide 1", "Slide 2\n\ntext"),
                                                                            ("slide 2", "Slide 10\n\ntext")]
    cells = '<c t="s"><v>0</v></c><c><v>3.5</v></c><c t="b"><v>1</v></c><c t="inlineStr"><is><t>in</t></is></c>'
    found = read(zipped({
        "xl/workbook.xml": '<w xmlns:r="r"><sheets><sheet name="Prices" r:id="r1"/></sheets></w>',
        "xl/_rels/workbook.xml.rels": '<R><Relationship Id="r1" Target="worksheets/sheet1.xml"/></R>',
        "xl/sharedStrings.xml": "<sst><si><t>Na</t><t>me</t><rPh><t>no</t></rPh></si></sst>",
        "xl/worksheets/sheet1.xml": f"<w><row>{cells}</row><row/></w>"}), "", "x.xlsx")
    assert found.text == "## Prices\n\nName | 3.5 | TRUE | in"
    found = read(zipped({"mimetype": kinds.ODT, "content.xml": '<o xmlns:t="t"><t:h t:outline-level="2">H</t:h>'
                         '<t:p>a<t:s/>b</t:p><t:table><t:table-row><t:table-cell><t:p>1</t:p></t:table-cell></t:table-row></t:table></o>'}),
                 kinds.ODT, "x")
    assert found.text == "## H\n\na b\n\n1"


@pytest.mark.parametrize("make", [
    lambda: docx("")[:-30], lambda: docx(f"{BILLION}"), lambda: zipped({"word/document.xml": BILLION + "<x>&a8;</x>"}),
    lambda: zipped({"word/document.xml": bytes(300 << 20)}), lambda: zipped({"word/document.xml": "<a>" * 100_000}),
    lambda: zipped({"word/document.xml": "x"}, zipfile.ZIP_LZMA), lambda: zipped({"word/document.xml": b"\xff\xfe"})],
    ids=["cut", "doctype", "laughs", "bomb", "deep", "lzma", "binary"])
def test_office_files_that_cannot_be_read(read, make):
    data = make()
    with pytest.raises(Unprocessable) as caught:
        read(data, kinds.DOCX, "a.docx")
    assert caught.value.code == "unreadable_document"


@pytest.mark.parametrize(("data", "media_type", "name"), [
    (b"\x89PNG", "image/png", "a.png"), (b"GIF89a\0\0", "", "a.gif"), (b"\0\1\2", "text/html", "x"),
    (zipped({"a": "b"}), "", "a.zip"),
    (b"not a pdf", "application/pdf", "x"), (b"not a docx", "", "a.docx"), (b"x", "text/css", "x"),
    (b"\x7fELF\0", "", "x")])
def test_what_holds_no_text(data, media_type, name):
    with pytest.raises(UnsupportedMedia) as caught:
        extract(data, media_type, name)
    assert caught.value.status == 415 and "expected HTML" in caught.value.message


def test_what_is_cut_is_told_of():
    assert extract(b"<p>a b", "text/html", "x", cut=True).truncated
    with pytest.raises(Unprocessable, match="FETCH_MAX_BYTES"):
        extract(pdf("a"), "application/pdf", "a.pdf", cut=True)


def test_what_is_read_by_lengths_is_cut(read):
    assert read(b"word " * 2_000_000, "text/plain", "x").truncated


@pytest.mark.parametrize(("fragment", "text"), [("plain", "plain"), ("a &amp; b", "a & b"), ("<p>a</p><p>b", "a\n\nb"),
                                                  ("", "")])
def test_fragments(fragment, text):
    assert text_of(fragment) == text


# ---------------------------------------------------------------- the child

def child(code: str) -> list[str]:
    return [sys.executable, "-c", f"import services.knowledge.reading as r\n{code}"]


@pytest.mark.parametrize(("code", "why"), [
    ("r._limit(); r.signal.setitimer(r.signal.ITIMER_PROF, 0.2)\nwhile True: pass", "too long"),
    ("import os; os.kill(os.getpid(), 11)", "brings the program down"),
    ("r.answer = lambda job: x; r.main()", "brings the program down"),
    ("import sys; sys.exit(3)", "brings the program down")])
def test_a_child_that_fails_is_told_of(monkeypatch, code, why):
    monkeypatch.setattr(extracting, "COMMAND", child(code))
    with pytest.raises(Unprocessable, match=why):
        extract(b"x", "text/plain", "x")


@pytest.mark.parametrize("act", [
    "import socket; socket.create_connection(('127.0.0.1', 9))", "import subprocess; subprocess.run(['true'])",
    "import os; os.system('true')", "open('/tmp/written', 'w')", "import socket; socket.getaddrinfo('localhost', 80)",
    "import os; os.fork()", "import os; os.open('/tmp/written', os.O_CREAT)"])
def test_a_child_may_only_read(act):
    code = f"import sys; sys.addaudithook(r._forbid)\ntry:\n    {act}\nexcept PermissionError: print('refused')"
    done = subprocess.run(child(code), cwd=extracting.ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr


def test_a_child_has_little_memory():
    code = "r._limit()\ntry:\n    bytearray(2 << 30)\nexcept MemoryError: print('refused')"
    done = subprocess.run(child(code), cwd=extracting.ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr


def test_a_child_sees_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("MASTER_KEY", "secret")
    code = "import os, sys; job = sys.stdin.buffer.read(); sys.exit(3 if 'MASTER_KEY' in os.environ else 4)"
    monkeypatch.setattr(extracting, "COMMAND", child(code))
    with pytest.raises(Unprocessable):
        extract(b"x", "text/plain", "x")


def test_every_kind_by_the_child():
    for data, name, text in ((b"<p>a", "x.html", "a"), (RSS, "x.rss", "## News"), (pdf("a"), "x.pdf", "a"),
                             (docx(paragraph("a")), "x.docx", "a"), (b"a,b", "x.csv", "a | b")):
        assert extract(data, "", name).text.startswith(text)
