// A turn of a conversation as it is shown, and what its answer cost.
import { button, copier, el } from "./dom.js";
import { colour, show } from "./render.js";

const LONG = 4000;          // characters of a question that are shown at first

/** The article of `turn`, which is number `at`; `acts` of its number: edit, again, rewind. `live`: it is still being
 *  written. */
export function turnNode(turn, at, acts, live = false) {
    const asked = turn.role === "user";
    const name = `${asked ? "question" : "answer"} ${(at >> 1) + 1}`;
    const text = el("div", { className: "text" });
    const tools = el("div", { className: "tools" }, copier(() => turn.content, { "aria-label": `Copy ${name}` }),
        asked ? button("Edit", () => acts.edit(at), { "aria-label": `Edit ${name}` })
            : [button("Again", () => acts.again(at), { "aria-label": `Again: ${name}` }),
                button("Rewind", () => acts.rewind(at), { "aria-label": `Rewind to ${name}`, className: "rewind" })]);
    const node = el("article", { className: turn.role, "aria-label": name[0].toUpperCase() + name.slice(1) },
        asked ? null : beside(turn), text, tools);
    if (asked) question(text, turn.content, name);
    else {
        show(text, turn.content);
        colour(text);
    }
    if (turn.interrupted && !live) node.append(el("p", { className: "hint" }, "This was cut short."));
    if (turn.citations?.length) node.append(cited(turn.citations));
    return node;
}

function question(node, content, name) {
    if (content.length <= LONG) {
        node.textContent = content;
        return;
    }
    node.textContent = `${content.slice(0, LONG)}…`;
    node.append(button("Show all", () => { node.textContent = content; }, { className: "all", "aria-label": `Show all of ${name}` }));
}

/** What was looked up and thought before the answer; `told` fills it in while it streams. */
function beside(turn) {
    const steps = (turn.steps ?? []).map((step) => el("li", {}, step));
    return [el("ul", { className: "steps", "aria-label": "What was looked up", hidden: !steps.length }, ...steps),
        el("details", { className: "reasoning", hidden: !turn.reasoning_content }, el("summary", {}, "Reasoning"),
            el("div", {}, turn.reasoning_content ?? ""))];
}

export function addStep(node, step) {
    const list = node.querySelector(".steps");
    list.hidden = false;
    list.append(el("li", {}, step));
}

export function addReasoning(node, text) {
    const thoughts = node.querySelector(".reasoning");
    thoughts.hidden = false;
    thoughts.lastChild.append(text);
}

/** How full the window is and what the answer cost, in one line. */
export function told({ usage, context, timings, warnings }) {
    if (!usage || !context?.window) return "";
    const details = usage.prompt_tokens_details;
    const seconds = (timings?.decode_ms ?? 0) / 1000;
    const parts = [`${usage.total_tokens} of ${context.window} tokens`,
        `${details.cached_tokens} cached, ${details.processed_tokens} processed`,
        seconds > 0 ? `${(usage.completion_tokens / seconds).toFixed(1)} tokens/s` : "",
        context.turns_dropped ? `${context.turns_dropped} earlier turns left out` : ""];
    return [...parts, ...(warnings ?? [])].filter(Boolean).join(" · ");
}

function cited(citations) {
    return el("ol", { className: "citations", "aria-label": "Sources" }, ...citations.map((one) => el("li",
        { value: one.n, className: one.cited ? "cited" : "" },
        /^https?:/i.test(one.url) ? el("a", { href: one.url, rel: "noopener noreferrer", target: "_blank" }, one.title) : one.title)));
}
