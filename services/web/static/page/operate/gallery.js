// Getting models: those of the galleries, and a file by its address, with how far each is, whoever began it.
import { call, get, post } from "./api.js";
import { button, confirmed, el } from "./dom.js";
import { field, form, moment, once, table, tried, watch } from "./parts.js";

const MOST = 50;            // entries that are shown at once
const LAST = 10;            // jobs that are done
const IDLE = 10;            // seconds between two looks while none runs

/** `come()` is called when a model has come. */
export function gallery(who, come) {
    const admin = who.scopes.includes("admin");
    const begun = table("Being got", ["Model", "File", "Progress", "Asked for", "Actions"], (one) => one.uuid,
        (one) => [...pullRow(one), admin && !one.processed ? button("Cancel", () => cancel(one),
            { "aria-label": `Cancel ${one.gallery_element_name}` }) : ""], "");
    const pulls = el("div", {}, begun.node);
    const node = el("details", {}, el("summary", {}, "Get a model"));
    let running = null;
    let seconds = 0;            // until the next look
    const look = async (now) => {
        if (!now && seconds-- > 0) return;
        const jobs = Object.values(await get("/models/jobs"));
        begun.fill(jobs.filter((one, at) => at < LAST || !one.processed));
        const before = running ?? [];
        const still = jobs.filter((one) => !one.processed).map((one) => one.uuid);
        if (!running && still.length) node.open = true;
        seconds = still.length ? 0 : IDLE;
        running = still;
        if (before.some((id) => !still.includes(id))) await come();
    };
    const apply = async (body) => {
        const { uuid } = await post("/models/apply", body);
        (running ??= []).push(uuid);
        await tried(() => look(true));
    };

    async function cancel(one) {
        if (!await confirmed(`Cancel the download of ${one.gallery_element_name}?`, "Cancel the download")) return;
        await tried(async () => {
            await call("DELETE", `/models/jobs/${one.uuid}`);
            await look(true);
        });
    }

    if (admin) {
        const found = el("div");
        node.addEventListener("toggle", () => node.open && !found.firstChild && offer(found, apply));
        node.append(byAddress(apply), pulls, found);
    } else {
        node.append(el("p", { className: "hint" }, "Getting a model needs the scope admin."), pulls);
    }
    tried(() => watch(pulls, 1, () => look(false)));
    return node;
}

function pullRow(job) {
    const state = job.error ? el("span", { className: "error" }, job.error) : job.processed ? "done" :
        [el("progress", { max: 100, value: job.progress, "aria-label": `Progress of ${job.gallery_element_name}` }),
            ` ${job.message} ${job.downloaded_size ? `${job.downloaded_size} of ${job.file_size}` : ""}`];
    return [job.gallery_element_name, job.file_name || "–", el("span", { role: "status" }, state), moment(job.created)];
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
            once(() => tried(() => apply({ id: one.name }))), { "aria-label": `Get ${one.name}` })], "Nothing found");
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
