// The jobs: what was asked for without waiting, how far it is, what came of it.
import { call, get } from "./api.js";
import { button, confirmed, el } from "./dom.js";
import { field, moment, number, options, table, tried, watch } from "./parts.js";

const PAGE = 50;
const STATES = [["", "all"], ["pending", "waiting"], ["running", "running"], ["success", "done"],
    ["error", "failed or cancelled"]];

export async function show(place, who) {
    const status = el("select", { onchange: () => { shown = PAGE; tried(look); } }, ...options(...STATES));
    const more = button("Show more", () => { shown += PAGE; tried(look); }, { hidden: true });
    const open = new Set();         // jobs whose details are open
    let shown = PAGE;
    const jobs = table("The newest first", ["Job", "State", "Progress", "Asked for", "Took", "Result", "Actions"],
        (one) => `${one.id} ${one.created}`, row,
        "There are no such jobs. One is made by POST /answer with “async”: true, or by POST /summaries.");
    const look = async () => {
        const wanted = status.value;
        const found = await get(`/jobs?limit=${Math.min(shown, 1000)}${wanted ? `&status=${wanted}` : ""}`);
        if (wanted !== status.value) return;
        jobs.fill(found.jobs);
        more.hidden = found.next === null || shown >= 1000;
    };

    function row(one) {
        const state = one.status === "error" ? el("span", { className: "error" }, one.code ?? "failed") :
            STATES.find(([name]) => name === one.status)[1];
        const over = one.ended !== null;
        return [[one.type, el("small", {}, one.id)],
            [state, one.priority === "high" ? el("small", {}, "high priority") : ""],
            progress(one), moment(one.created), over ? `${one.duration.toFixed(1)} s` : "–", over ? result(one) : "–",
            over ? "" : button("Cancel", () => cancel(one), { "aria-label": `Cancel ${one.type} ${one.id}` })];
    }

    /** What came of a job; open ones stay open when the table is drawn again. */
    function result(one) {
        const toggled = () => node.open ? open.add(one.id) : open.delete(one.id);
        const node = el("details", { open: open.has(one.id), ontoggle: toggled },
            el("summary", { "aria-label": `Result of ${one.type} ${one.id}` }, one.status === "error" ? "Why" : "Result"),
            el("pre", { tabIndex: 0 }, one.result ?? "(nothing)"),
            el("p", { className: "hint" }, about(one)));
        return node;
    }

    async function cancel(one) {
        if (!await confirmed(`Cancel ${one.type} ${one.id}?`, "Cancel the job")) return;
        await tried(async () => {
            await call("DELETE", `/jobs/${encodeURIComponent(one.id)}`);
            await look();
        });
    }

    place.append(field("Show", status), jobs.node, more, el("p", { className: "hint" },
        who.master ? "The master key sees everybody's jobs." : "These are the jobs of this key."));
    await watch(place, 1, look);
}

function progress(one) {
    if (one.status !== "running" || !one.chunks_total) return one.status === "running" ? "working" : "–";
    return [el("progress", { max: one.chunks_total, value: one.chunks_done, "aria-label": `Progress of ${one.id}` }),
        ` ${one.chunks_done} of ${one.chunks_total}`];
}

function about(one) {
    const tokens = one.usage && (one.usage.total_tokens ?? one.usage.prompt_tokens + one.usage.completion_tokens);
    const used = one.usage ? `${number(tokens)} tokens` : "";
    const told = one.callback ? `callback ${one.callback.state}${one.callback.error ? `: ${one.callback.error}` : ""}` : "";
    return [one.model, one.profile && `profile ${one.profile}`, used, told, ...one.warnings].filter(Boolean).join(" · ");
}
