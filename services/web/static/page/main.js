// The page: signing in, then the conversations on the left and one of them on the right.
import { forgetKey, get, keepKey, key, onRefused } from "./api.js";
import { Conversation } from "./chat.js";
import { Choices } from "./choices.js";
import { button, el, say } from "./dom.js";
import { firstSteps } from "./first.js";
import { operate } from "./operate.js";
import { Sessions } from "./sessions.js";

const app = document.getElementById("app");
const said = el("div", { id: "said", role: "status", "aria-live": "polite" });
const DRAFT = "parley-draft";                   // kept for this tab
const skip = document.querySelector(".skip");
let signedIn = new AbortController();           // until then what was begun for a key goes on

/** Nothing of a key, and of what it has shown, stays. */
function leave(why) {
    signedIn.abort();
    forgetKey();
    document.title = "Parley";
    history.replaceState(null, "", location.pathname);
    document.querySelectorAll("dialog").forEach((dialog) => dialog.close(""));
    signIn(why);
}

function signIn(why = "") {
    skip.hidden = true;
    said.replaceChildren();
    onRefused(() => {});
    const field = el("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: false,
        pattern: "\\s*[!-~]+\\s*", title: "A key has no spaces, and no letters but those of English" });
    const problem = el("p", { className: "error", role: "alert" }, why);
    let enters = false;
    const enter = async (event) => {
        event.preventDefault();
        if (enters) return;
        enters = true;
        keepKey(field.value.trim());
        try {
            await start(await get("/auth"));
        } catch (error) {
            forgetKey();
            field.select();
            problem.textContent = error.message;
        } finally {
            enters = false;
        }
    };
    app.replaceChildren(el("main", { className: "sign-in" }, el("h1", {}, "Parley"),
        el("form", { onsubmit: enter }, el("label", { htmlFor: "key" }, "API key"), field,
            el("button", {}, "Sign in"), problem),
        el("p", { className: "hint" }, "The key stays in this tab and goes when it is closed. An operator makes one with ",
            el("code", {}, ".venv/bin/python main.py keys create"), ".")), said);
    field.focus();
}

/** The page of the key `who`, as /auth tells it. */
async function start(who) {
    signedIn = new AbortController();
    const { signal } = signedIn;
    onRefused(leave);
    const choices = new Choices(who);
    await look(() => choices.learn());
    if (signal.aborted) return;
    const conversation = new Conversation(choices, (id, name) => sessions.used(id, conversation.id, name),
        firstSteps(who, choices.those, (choice, prompt) => conversation.propose(choice, prompt)));
    const sessions = new Sessions(who, (id) => conversation.open(id), () => conversation.begin(), (id) => conversation.forget(id));
    const talks = who.scopes.includes("answer");
    skip.hidden = !talks;
    app.replaceChildren(
        el("header", {}, talks ? sessions.opener : null, el("h1", {}, "Parley"), talks ? choices.node : null,
            el("span", { className: "who", title: who.id ?? "" }, who.name ?? ""), button("Sign out", () => leave())),
        el("div", { className: "columns" }, ...talks ? [sessions.node, conversation.node] : [el("main", {}, el("p", { className: "log hint" },
            "This key lacks the scope answer: it cannot talk. What it can do stands above."))]), said);
    operate(app, who);
    if (!talks) return;
    choices.changed = () => conversation.greet();
    signal.addEventListener("abort", () => conversation.close());
    listen(conversation, sessions, signal);
    conversation.begin();
    conversation.prompt.text = sessionStorage.getItem(DRAFT) ?? "";
    if (named()) await sessions.choose(named());
    conversation.placed = (id) => {
        if (conversation.node.offsetParent && named() !== id) history.pushState(null, "", address(id));
    };
    await look(() => sessions.load());
}

/** Keys, and the moments at which the chat is seen again. */
function listen(conversation, sessions, signal) {
    document.addEventListener("keydown", (event) => {
        if (event.key === "Escape") sessions.unfold(false);
        if (event.key === "Escape" && (event.target === document.body || conversation.node.contains(event.target))) conversation.stop();
        if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "o" && conversation.node.offsetParent) {
            event.preventDefault();
            sessions.choose(null);
        }
    }, { signal });
    const again = () => {
        if (!document.hidden && conversation.node.offsetParent) look(() => Promise.all([conversation.refresh(), sessions.load()]));
    };
    document.addEventListener("visibilitychange", again, { signal });
    addEventListener("hashchange", () => {
        if (conversation.node.offsetParent && named() !== conversation.id) {
            if (named()) sessions.choose(named());
            else history.replaceState(null, "", address(conversation.id));       // the link to the chat leads to what is open
        }
        again();
    }, { signal });
    addEventListener("pagehide", () => sessionStorage.setItem(DRAFT, conversation.prompt.text), { signal });
}

/** The conversation that the address names, or null. */
function named() {
    try {
        return decodeURIComponent(location.hash.match(/^#chat\/(.+)/)?.[1] ?? "") || null;
    } catch {
        return null;
    }
}

const address = (id) => id === null ? "#chat" : `#chat/${encodeURIComponent(id)}`;
const look = (act) => act().catch((error) => say(error.message, "error"));

for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => {
    if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files") || event.target.type === "file") return;
    event.preventDefault();                 // else the browser leaves the page, and what was typed, for the file
    event.dataTransfer.dropEffect = "none";
});

addEventListener("pageshow", (event) => {       // brought back by the browser after who was here has left
    if (event.persisted && !key()) leave();
});
function enter() {
    get("/auth").then(start, (error) => error.status === 401 ? signIn(error.message) : app.replaceChildren(el("main", {
        className: "sign-in" }, el("h1", {}, "Parley"), el("p", { role: "alert" }, error.message), button("Try again", enter))));
}

if (key()) enter();
else signIn();
