// Files that go along with a prompt: texts are read here and quoted; what needs a reader goes into a knowledge base.
import { call, get, post } from "./api.js";
import { button, el, say } from "./dom.js";

const MOST = 200 * 1024;                // bytes of a text
const INDEXED = /\.(pdf|docx|xlsx|pptx|odt|ods|odp|epub|rtf|zip)$/i;
const OWN = "files-";                   // begins the name of the base that holds a conversation's files
const PATIENCE = 700;                   // ms between two looks at what is being indexed

/** The name of the knowledge base that holds the files of conversation `id`. */
export const baseOf = (id) => `${OWN}${id}`.replace(/[^\w-]/g, "_").slice(0, 64);
export const isOwn = (name) => name.startsWith(OWN);

export class Files {
    /** `choices.embeds`: whether there is an embedding profile. Files that are dropped on `area` are taken. */
    constructor(area, choices) {
        this.choices = choices;
        this.held = [];
        const picker = el("input", { type: "file", multiple: true, hidden: true, "aria-label": "Files", onchange: () => {
            this.take(picker.files);
            picker.value = "";
        } });
        this.list = el("ul", { className: "chips", "aria-label": "Files that go along" });
        this.add = el("span", {}, button("Add files", () => picker.click()), picker);
        for (const kind of ["dragover", "drop"]) area.addEventListener(kind, (event) => {
            if (!event.dataTransfer?.types.includes("Files")) return;
            event.preventDefault();
            area.classList.toggle("dropping", kind === "dragover");
            if (kind === "drop") this.take(event.dataTransfer.files);
        });
        area.addEventListener("dragleave", () => area.classList.remove("dropping"));
    }

    async take(files) {
        for (const file of [...files]) {          // a list that empties when its input is used again
            try {
                this.held.push(await held(file, this.choices.embeds));
            } catch (error) {
                say(error.message, "error");
            }
        }
        this.draw();
    }

    draw() {
        this.list.replaceChildren(...this.held.map((one) => el("li", {}, one.name,
            button("✕", () => this.drop(one), { "aria-label": `Leave out ${one.name}` }))));
    }

    drop(one) {
        this.held = this.held.filter((other) => other !== one);
        this.draw();
        (this.list.querySelector("button") ?? document.getElementById("prompt")).focus();
    }

    /** None is there any more; those that were. */
    clear() {
        const held = this.held;
        this.held = [];
        this.draw();
        return held;
    }

    back(held) {
        this.held.unshift(...held);
        this.draw();
    }

    /** `prompt` with the texts after it, each in a fence that nothing in it can end. */
    quoted(prompt) {
        const texts = this.held.filter((one) => one.text !== undefined).map(({ name, text }) => {
            const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map((run) => run[0].length + 1)));
            return `${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
        });
        return [prompt, ...texts].join("\n\n");
    }

    /** Has the server index what needs it, in the base of conversation `id`, which is answered from then. */
    async index(id, signal, tell) {
        const waiting = this.held.filter((one) => one.file);
        if (!waiting.length) return;
        const name = baseOf(id);
        await post("/knowledge", { name }).catch((error) => { if (error.status !== 409) throw error; });
        const form = new FormData();
        for (const one of waiting) form.append("files", one.file, one.name);
        const { sources } = await call("POST", `/knowledge/${name}/files`, form, signal);
        this.held = this.held.filter((one) => !waiting.includes(one));       // they are there: a second try need not send them again
        this.draw();
        this.choices.bases.add(name);       // also where one of them cannot be read: the others are answered from
        this.choices.enter(id);
        for (const { id: source, name: title } of sources) {
            await indexed(`/knowledge/${name}/sources/${encodeURIComponent(source)}`, title, signal, tell);
        }
    }
}

async function held(file, embeds) {
    if (INDEXED.test(file.name)) {
        if (!embeds) {
            throw new Error(`${file.name} has to be indexed, and no embedding profile is here to do it: an operator adds one `
                + "with main.py models pull minilm");
        }
        return { name: file.name, file };
    }
    if (file.size > MOST) throw new Error(`${file.name} has ${Math.ceil(file.size / 1024)} KB; a text may have ${MOST / 1024}`);
    try {
        const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
        if (!text.includes("\0")) return { name: file.name, text };
    } catch { /* not UTF-8: as little a text as one with zero bytes */ }
    throw new Error(`${file.name} is no text in UTF-8, and no document that the server reads`);
}

async function indexed(path, title, signal, tell) {
    for (;;) {
        const source = await get(path);
        if (source.state === "error") throw new Error(`${title}: ${source.error}`);
        if (source.state === "done") return source.problems.forEach((one) => say(one, "error"));
        tell(`Reading ${title}…`);
        await new Promise((resolve) => setTimeout(resolve, PATIENCE));
        signal.throwIfAborted();
    }
}
