// One knowledge base: what is in it, adding to it, searching it, sharing it.
import { call, get, post } from "./api.js";
import { addForm } from "./baseadd.js";
import { button, confirmed, el, say } from "./dom.js";
import { chosen, field, form, many, moment, number, once, options, table, tried, watch } from "./parts.js";

const STATES = { queued: "waits", running: "is being read", done: "done", error: "failed" };
export const sharing = (shared) => shared === true ? "with every key"
    : shared.length ? `with ${many(shared.length, "key")}` : "no";
const AGAIN = [["0", "never"], ["3600", "every hour"], ["86400", "every day"], ["604800", "every week"]];

export async function showBase(place, who, name) {
    const path = `/knowledge/${encodeURIComponent(name)}`;
    const facts = el("p", { role: "status" });
    const acts = el("div", { className: "acts" });
    let base = await get(path);
    const own = base.owner === who.id;
    const sources = table("Sources", ["Source", "State", "Documents", "Chunks", "Added", ...(own ? ["Actions"] : [])],
        (one) => one.id, (one) => [[one.name, el("small", {}, one.kind)], state(one), indexed(one), number(one.chunks),
            moment(one.added), ...(own ? [button("Delete", () => drop(one), { "aria-label": `Delete ${one.name}` })] : [])],
        "Nothing has been added yet.");
    let gone = false;                       // it is being deleted: nobody looks any more
    let looking = Promise.resolve();
    const look = () => {
        if (!gone) looking = looked();
        return looking;
    };
    const looked = async () => {
        const [now, found] = await Promise.all([get(path), get(`${path}/sources`)]);
        base = now;
        const text = [many(base.documents, "document"), many(base.chunks, "chunk"), many(base.characters, "character"),
            `embeddings by ${base.profile} (${base.model})`, `shared: ${sharing(base.shared)}`,
            `read again: ${again(base.refresh_seconds)}`].join(" · ");
        if (facts.textContent !== text) facts.textContent = text;
        sources.fill(found.sources);
    };
    const changed = (act) => tried(async () => {
        await act();
        await look();
    });

    async function drop(source) {
        if (await confirmed(`Delete “${source.name}” with its documents?`, "Delete")) {
            await changed(() => call("DELETE", `${path}/sources/${encodeURIComponent(source.id)}`));
        }
    }

    async function remove() {
        if (!await confirmed(`Delete the knowledge base “${base.name}” with all that is in it?`, "Delete")) return;
        gone = true;
        await Promise.allSettled([looking]);
        gone = await tried(() => call("DELETE", path));
        if (gone) location.hash = "#knowledge";
    }

    if (own) {
        acts.append(button("Share", () => share(base, path, changed)),
            button("Read again…", () => refreshing(base, path, changed)),
            button("Make vectors anew", once(() => changed(() => post(`${path}/reindex`)
                .then(() => say("The vectors are being made anew"))))),
            button("Delete", remove));
    }
    place.append(el("p", {}, el("a", { href: "#knowledge" }, "All knowledge bases")), el("h3", {}, base.name),
        facts, acts, sources.node);
    if (own) place.append(addForm(path, look));
    place.append(searching(path));
    await watch(place, 1, look);
}

function state(one) {
    const next = one.next_try && `it is tried again at ${new Date(one.next_try).toLocaleString()}`;
    const told = [one.error, next].filter(Boolean).join("; ");
    return [el("span", { className: one.state === "error" ? "error" : "" }, STATES[one.state], told ? `: ${told}` : ""),
        one.problems.length ? el("details", {}, el("summary", {}, `${one.problems.length} left out`),
            el("ul", {}, ...one.problems.map((problem) => el("li", {}, problem)))) : null];
}

const indexed = (one) => one.indexed === one.documents ? number(one.documents) :
    [el("progress", { max: one.documents, value: one.indexed, "aria-label": `Progress of ${one.name}` }),
        ` ${one.indexed} of ${one.documents}`];

const again = (seconds) => AGAIN.find(([value]) => Number(value) === (seconds ?? 0))?.[1] ?? `every ${number(seconds)} s`;

async function share(base, path, changed) {
    const ids = Array.isArray(base.shared) ? base.shared.join(", ") : "";
    const who = el("select", { name: "with" },
        ...options(["no", "nobody else"], ["all", "every key"], ["ids", "these keys"]));
    who.value = base.shared === true ? "all" : ids ? "ids" : "no";
    const asked = await chosen(`Who may read “${base.name}”`, [
        field("With", who),
        field("Ids of keys", el("input", { name: "ids", value: ids, autocomplete: "off" }),
            "separated by commas; for “these keys”")], "Share");
    if (!asked) return;
    const listed = asked.ids.value.split(",").map((one) => one.trim()).filter(Boolean);
    await changed(() => call("PATCH", path, { shared: { no: false, all: true, ids: listed }[asked.with.value] }));
}

async function refreshing(base, path, changed) {
    const every = el("select", { name: "every" }, ...options(["", "as it is"], ...AGAIN));
    const asked = await chosen(`Read the addresses of “${base.name}” again`, [field("By itself from now on", every),
        el("label", {}, el("input", { type: "checkbox", name: "now", checked: true }), " now, too")], "OK");
    if (!asked) return;
    await changed(async () => {
        if (asked.every.value) await call("PATCH", path, { refresh_seconds: Number(asked.every.value) });
        if (asked.now.checked) await post(`${path}/refresh`);
    });
}

function searching(path) {
    const hits = el("ol", { className: "hits", "aria-label": "Found" });
    const told = el("p", { className: "hint", role: "status" });
    const node = form("Search", [field("Search this base", el("input", { type: "search", name: "query", required: true })),
    ], "Search", async ({ query }) => {
        const { results } = await post(`${path}/search`, { query: query.value, top_k: 10 });
        told.textContent = results.length ? `${results.length} found` : "Nothing found";
        hits.replaceChildren(...results.map((one) => el("li", {}, el("strong", {}, one.title || one.name),
            el("small", {}, ` ${one.section !== one.title ? one.section : ""} · score ${one.score.toFixed(2)}`),
            el("p", {}, one.text))));
    });
    node.append(told, hits);
    return node;
}
