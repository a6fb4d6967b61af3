// Getting models: those of the galleries, and a file by its address, with how far each is.
import { get, post } from "./api.js";
import { button, el } from "./dom.js";
import { field, form, table, tried } from "./parts.js";

const MOST = 50;            // entries that are shown at once
const pulls = new Map();    // jobs that were begun on this page: id -> how it was last

/** `come()` is called when a model has come. */
export function gallery(who, come) {
    const begun = table("Being got", ["Model", "File", "Progress"], (one) => one.uuid, pullRow, "");
    const node = el("details", { open: pulls.size > 0 }, el("summary", {}, "Get a model"));
    if (!who.scopes.includes("admin")) {
        node.append(el("p", { className: "hint" }, "Getting a model needs the scope admin."));
        return node;
    }
    const found = el("div");
    const apply = async (body) => {
        const { uuid } = await post("/models/apply", body);
        pulls.set(uuid, { uuid, gallery_element_name: body.id ?? body.name, message: "queued", progress: 0 });
        begun.fill([...pulls.values()]);
        follow(uuid, begun, come);
    };
    node.addEventListener("toggle", () => node.open && !found.firstChild && offer(found, apply));
    node.append(begun.node, byAddress(apply), found);
    begun.fill([...pulls.values()]);
    for (const [uuid, job] of pulls) if (!job.processed) follow(uuid, begun, come);
    return node;
}

function pullRow(job) {
    const state = job.error ? el("span", { className: "error" }, job.error) : job.processed ? "done" :
        [el("progress", { max: 100, value: job.progress, "aria-label": `Progress of ${job.gallery_element_name}` }),
            ` ${job.message} ${job.downloaded_size ? `${job.downloaded_size} of ${job.file_size}` : ""}`];
    return [job.gallery_element_name, job.file_name || "–", el("span", { role: "status" }, state)];
}

/** Asks how a job is until it is done, or the page shows something else. */
async function follow(uuid, begun, come) {
    for (;;) {
        let job;
        const asked = await tried(async () => { job = await get(`/models/jobs/${uuid}`); });
        if (!asked) return;
        pulls.set(uuid, job);
        begun.fill([...pulls.values()]);
        if (job.processed) return tried(come);
        await new Promise((done) => setTimeout(done, 1000));
        if (!begun.node.isConnected) return;
    }
}

function byAddress(apply) {
    const node = form("Get a file", [
        field("Address of a GGUF file", el("input", { name: "files", required: true, autocomplete: "off" }),
            "https://…/model.gguf or huggingface://owner/repository/file.gguf"),
        field("SHA-256", el("input", { name: "sha256", maxLength: 64, autocomplete: "off" }),
            "if you know it: the file is checked against it"),
    ], "Get it", async ({ files, sha256 }) => {
        const uri = files.value.trim();
        const filename = uri.split(/[?#]/)[0].split("/").pop();
        await apply({ name: filename.replace(/\.gguf$/i, ""), config_file: { parameters: { model: filename } },
            files: [{ filename, uri, ...(sha256.value.trim() ? { sha256: sha256.value.trim() } : {}) }] });
        node.reset();
    });
    return node;
}

async function offer(place, apply) {
    place.replaceChildren(el("p", { className: "hint", role: "status" }, "Reading the galleries…"));
    let entries;
    try {
        entries = await get("/models/available");
    } catch (error) {
        place.replaceChildren(el("p", { className: "error", role: "alert" }, error.message));
        return;
    }
    if (!entries.length) {
        place.replaceChildren(el("p", { className: "hint" },
            "There are no galleries, or nothing in them: GALLERIES names them, see .env.example."));
        return;
    }
    const rows = table("Galleries", ["Model", "What it is", "Licence", "Here"], (one) => one.name, (one) => [one.name,
        one.description ?? "", one.license ?? "", one.installed ? "is here" : button("Get",
            () => tried(() => apply({ id: one.name })), { "aria-label": `Get ${one.name}` })], "Nothing found");
    const more = el("p", { className: "hint", role: "status" });
    const search = el("input", { type: "search", oninput: () => draw() });
    const draw = () => {
        const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
        const said = (one) => `${one.name} ${one.description ?? ""}`.toLowerCase();
        const fit = entries.filter((one) => words.every((word) => said(one).includes(word)));
        rows.fill(fit.slice(0, MOST));
        more.textContent = fit.length > MOST ? `The first ${MOST} of ${fit.length}: search for others.` : "";
    };
    place.replaceChildren(field("Search the galleries", search), rows.node, more);
    draw();
}
