// What to do first: shown beside an empty conversation, open for who has just set the server up.
import { get, post } from "./api.js";
import { button, copier, el, say } from "./dom.js";

const STARTER = "starter.gguf";
const PULL = '.venv/bin/python main.py models pull Qwen/Qwen2.5-1.5B-Instruct-GGUF "*q4_k_m.gguf"';
const curl = () => [`curl ${location.origin}/answer`, '-H "Authorization: Bearer YOUR-KEY"',
    '-H "Content-Type: application/json"', `-d '{"prompt": "What is the capital of France?"}'`].join(" \\\n    ");

/** `who` as /auth tells it; `choices`: who may answer; `ask(choice, prompt)` puts a prompt before one of them. */
export function firstSteps(who, choices, ask) {
    const makesKeys = who.scopes.includes("keys");
    const starter = choices.find((one) => one.kind === "profile" && one.model === STARTER);
    const steps = el("ol", {}, makesKeys ? makeKey(who) : null,
        starter ? el("li", {}, el("h3", {}, "Try the starter model"), el("p", {}, "A tiny model is here already. It greets, "
            + "remembers names and knows capitals, and is there to see that all works."),
        button("Ask it for a capital", () => ask(starter, "What is the capital of France?"))) : null,
        makesKeys ? el("li", {}, el("h3", {}, "Get a real model"), el("p", {}, "On the server, in its folder; then give it a "
            + "profile, by hand in data/config.json or under Models:"), copied("pull command", PULL)) : null,
        el("li", {}, el("h3", {}, "Ask from a program"), el("p", {}, "With a key in the place of YOUR-KEY. OpenAI's clients take ",
            el("code", {}, `${location.origin}/v1`), " as their base URL; ",
            el("a", { href: "/docs", target: "_blank", rel: "noopener" }, "all that there is"), "."), copied("curl command", curl())));
    const node = el("details", { className: "first", open: !choices.length || who.master === true },
        el("summary", {}, el("h2", {}, "Getting started")), steps);
    if (makesKeys) openIfAlone(node);
    return node;
}

/** Who has made no key for anybody yet is at the beginning. */
async function openIfAlone(node) {
    try {
        const { keys } = await get("/auth/keys");
        if (keys.every((key) => key.master)) node.open = true;
    } catch (error) {
        say(error.message, "error");
    }
}

function makeKey(who) {
    const name = el("input", { type: "text", maxLength: 80, "aria-label": "Name of the key", placeholder: "for whom", required: true,
        pattern: ".*\\S.*" });
    const made = el("div", { role: "status" });
    const make = async (event) => {
        event.preventDefault();
        try {
            const { key } = await post("/auth/key", { name: name.value.trim(),
                scopes: ["answer", "models:read"].filter((scope) => who.scopes.includes(scope)) });
            made.replaceChildren(el("p", {}, "This is shown once: keep it."), copied("new key", key));
        } catch (error) {
            say(error.message, "error");
        }
    };
    return el("li", {}, el("h3", {}, "Make a key"), el("p", {}, who.master === true
        ? "You are in with the master key. For talking, and for each program, make keys that may do less."
        : "One for each person and program: then each can be limited and revoked alone."),
    el("form", { onsubmit: make }, name, el("button", {}, "Make a key")), made);
}

/** A line to be copied, in a field: what stands in one is not part of the page's markup. */
function copied(what, text) {
    const field = el("textarea", { readOnly: true, rows: text.split("\n").length, value: text, spellcheck: false,
        "aria-label": what[0].toUpperCase() + what.slice(1), onfocus: () => field.select() });
    return el("div", { className: "copied" }, field, copier(() => text, { "aria-label": `Copy ${what}` }));
}
