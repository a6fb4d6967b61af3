// The server's load as it is: plots of /metrics, one look every two seconds.
import { el } from "./dom.js";
import { counted, figures } from "./figures.js";
import { number, table, watch } from "./parts.js";
import { plot } from "./plot.js";

const EVERY = 2;
const MOST = 50;        // rows
const REDIS = "Skynet_Summaries_redis_connection_status";       // where the jobs are in Redis
const QUEUE = "Skynet_Summaries_summary_queue_size";
/** How a plot's value comes from this look and the one before, which were `seconds` apart. */
const growth = (name) => (found, before, seconds) => {
    const grown = before ? counted(found, name) - counted(before, name) : -1;
    return grown < 0 ? null : grown / seconds;      // less than before: the server or a runner began anew
};
const level = (name) => (found) => counted(found, name);
const mean = (name) => (found, before) => {
    const count = before && counted(found, `${name}_count`) - counted(before, `${name}_count`);
    return count > 0 ? (counted(found, `${name}_sum`) - counted(before, `${name}_sum`)) / count : null;
};
const PLOTS = [
    ["Requests for text", "/s", 1, growth("parley_requests_total")],
    ["Tokens sampled", "/s", 1, growth("parley_runner_completion_tokens_total")],
    ["Requests running", "", 0, level("parley_runner_running")],
    ["Requests waiting for a slot", "", 0, level("parley_runner_waiting")],
    ["Slots that hold tokens", "", 0, level("parley_runner_slots_used")],
    ["Jobs that wait", "", 0, (found) => found.get(REDIS)?.[0].value === 0 ? null : counted(found, QUEUE)],
    ["Time to first token", " s", 2, mean("parley_time_to_first_token_seconds")],
    ["Time of a request", " s", 2, mean("parley_request_duration_seconds")],
    ["HTTP requests", "/s", 1, growth("parley_http_requests_total")],
];

export async function show(place) {
    const plots = PLOTS.map(([title, unit, digits, value]) => ({ value, ...plot(title, unit, digits) }));
    const slots = el("p");
    const cached = el("p");
    const ended = table("Requests since the server's start", ["Profile", "Outcome", "Requests"],
        (one) => `${one.profile} ${one.outcome}`, (one) => [one.profile, one.outcome, number(one.count)],
        "No request for text has ended yet.");
    const rest = el("p", { className: "hint" });
    let before = null;
    let then = 0;
    const look = async () => {
        const found = await figures();
        const now = performance.now() / 1000;
        for (const one of plots) one.add(one.value(found, before, now - then));
        slots.textContent = busy(found);
        cached.textContent = told(found);
        const rows = (found.get("parley_requests_total") ?? []).map((one) => ({ ...one.labels, count: one.value }));
        ended.fill(rows.sort((one, other) => other.count - one.count).slice(0, MOST));
        rest.textContent = rows.length > MOST ? `The ${MOST} largest of ${number(rows.length)}.` : "";
        [before, then] = [found, now];
    };
    place.append(el("div", { className: "plots" }, ...plots.map((one) => one.node)), slots, cached, ended.node,
        rest, el("p", { className: "hint" }, `A look every ${EVERY} s while this tab is seen, of the last five minutes `,
            "at most. Of several servers behind one address, a look sees the one that answers; the jobs are everybody's."));
    await watch(place, EVERY, look);
}

function busy(found) {
    const of = (name) => number(counted(found, name));
    const jobs = of("Skynet_Summaries_summary_current_tasks_by_processor");
    return `Slots: ${of("parley_runner_running")} of ${of("parley_runner_slots")} busy. Jobs that run: ${jobs}.`;
}

/** How much of the prompts was there already: the seed's statistics of its cache. */
function told(found) {
    const of = (kind) => counted(found, "parley_prompt_tokens_total", { kind });
    const all = of("cached") + of("processed");
    if (!all) return "No prompt tokens yet.";
    return `Of ${number(all)} prompt tokens ${number(of("cached"))} were cached: ${(100 * of("cached") / all).toFixed(1)} %`;
}
