// The form that adds a text, files, an address, or a site to a knowledge base.
import { call, post } from "./api.js";
import { el } from "./dom.js";
import { field, form, options } from "./parts.js";

const KINDS = [["files", "files"], ["text", "a text"], ["url", "an address"], ["crawl", "the pages of a site"]];

/** `path`: the base's. `added()` is called when the server has taken it; it is read in the background. */
export function addForm(path, added) {
    const kind = el("select", { name: "kind", onchange: () => pick() }, ...options(...KINDS));
    const parts = {
        files: [field("Files", el("input", { type: "file", name: "files", multiple: true }),
            "PDF, Word, HTML, text, zip and more")],
        text: [field("Title", el("input", { name: "title", maxLength: 200 })),
            field("Text", el("textarea", { name: "text", rows: 5 }))],
        url: [field("Address", el("input", { type: "url", name: "url", maxLength: 2048 }))],
        crawl: [field("First page", el("input", { type: "url", name: "crawl", maxLength: 2048 }),
            "only pages of its host are read"),
            field("Links from there at most", el("input", { type: "number", name: "max_depth", min: 0, max: 10, value: 2 })),
            field("Pages at most", el("input", { type: "number", name: "max_pages", min: 1, max: 100000, value: 50 }))],
    };
    const pick = () => {
        for (const [name, fields] of Object.entries(parts)) {
            for (const one of fields) {
                one.hidden = name !== kind.value;
                one.querySelector("input, textarea").disabled = one.hidden;
            }
        }
    };
    const node = form("Add", [field("What", kind), ...Object.values(parts).flat()], "Add", async (given) => {
        const chosen = kind.value;
        if (chosen === "files") await call("POST", `${path}/files`, sent(given.files.files));
        else await post(`${path}/documents`, body(chosen, given));
        node.reset();
        kind.value = chosen;
        pick();
        await added();
    });
    pick();
    return node;
}

function sent(files) {
    if (!files.length) throw new Error("Choose one or more files first");
    const form = new FormData();
    for (const file of files) form.append("file", file, file.name);
    return form;
}

function body(kind, given) {
    if (kind === "text") return { text: given.text.value, title: given.title.value.trim() || undefined };
    if (kind === "url") return { url: given.url.value };
    return { crawl: { url: given.crawl.value, max_depth: Number(given.max_depth.value),
        max_pages: Number(given.max_pages.value) } };
}
