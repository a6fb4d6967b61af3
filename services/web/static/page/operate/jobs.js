// The jobs: what was asked for without waiting, how far it is, what came of it.
import { call, get } from "./api.js";
import { button, confirmed, el, say } from "./dom.js";
import { field, moment, number, options, table, tried, watch } from "./parts.js";

const PAGE = 50;
const STATES = [["", "all"], ["pending", "waiting"], ["running", "running"], ["success", "done"],
    ["failed", "failed"], ["cancelled", "cancelled"]];

export async function show(place, who) {
    const keys = who.master ? (await get("/auth/keys")).keys.map((one) => [one.id, `${one.name} ${one.id}`.trim()]) : [];
    const names = new Map(keys);
    const onchange = () => { shown = PAGE; tried(look); };
    const status = el("select", { onchange }, ...options(...STATES));
    const whose = el("select", { onchange }, ...options(["", "everybody's"], ...keys));
    const more = button("Show more", async () => {
        shown += PAGE;
        if (await tried(look) && more.hidden) jobs.node.focus({ preventScroll: true });
    }, { hidden: true });
    let shown = PAGE;
    const jobs = table("The newest first", ["Job", ...(who.master ? ["Key"] : []), "State", "Progress", "Asked for",
        "Took", "Result", "Actions"], (one) => `${one.owner} ${one.id}`, row,
        "There are no such jobs. One is made by POST /answer with “async”: true, or by POST /summaries/v1/summary.");
    const look = async () => {
        const wanted = new URLSearchParams({ limit: Math.min(shown, 1000) });
        for (const [name, list] of [["status", status], ["owner", whose]]) if (list.value) wanted.set(name, list.value);
        const asked = status.value + whose.value;
        const found = await get(`/jobs?${wanted}`);
        if (asked !== status.value + whose.value) return;
        jobs.fill(found.jobs);
        more.hidden = found.next === null || shown >= 1000;
    };

    function row(one) {
        const name = one.status !== "error" ? one.status : one.code === "cancelled" ? one.code : "failed";
        const state = [STATES.find(([id]) => id === name)[1], name === "failed" ? el("small", { className: "error" }, one.code) : ""];
        const over = one.ended !== null;
        const named = `${one.type} ${one.id}`;
        const act = !over ? button("Cancel", () => cancel(one), { "aria-label": `Cancel ${named}` })
            : one.status === "error" && one.code !== "cancelled" && one.type !== "batch"
                ? button("Try again", () => retry(one), { "aria-label": `Try ${named} again` }) : "";
        return [[one.type, el("small", {}, one.id)], ...(who.master ? [names.get(one.owner) ?? one.owner] : []),
            [...state, one.priority === "high" ? el("small", {}, "high priority") : ""],
            progress(one), moment(one.created), over ? `${one.duration.toFixed(1)} s` : "–", over ? result(one) : "–", act];
    }

    const result = (one) => el("details", {},
        el("summary", { "aria-label": `Result of ${one.type} ${one.id}` }, one.status === "error" ? "Why" : "Result"),
        el("pre", { tabIndex: 0 }, one.result ?? "(nothing)"), el("p", { className: "hint" }, about(one)));

    const cancel = async (one) => await confirmed(`Cancel ${one.type} ${one.id}?`, "Cancel the job") && done(one, "DELETE");
    const retry = async (one) => await done(one, "POST", "/retry") && say("It waits in the queue once more");

    function done(one, method, act = "") {
        const owner = one.owner ? `?owner=${encodeURIComponent(one.owner)}` : "";
        return tried(async () => {
            await call(method, `/jobs/${encodeURIComponent(one.id)}${act}${owner}`);
            await look();
        });
    }

    place.append(field("Show", status), ...(who.master ? [field("Key", whose)] : []), jobs.node, more, el("p", { className: "hint" },
        who.master ? "The master key sees everybody's jobs." : "These are the jobs of this key.", " At most 1,000 are shown."));
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
