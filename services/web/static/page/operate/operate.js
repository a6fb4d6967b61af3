// The operator's part: a navigation in the header, and the views that the key's scopes open. Each has an address.
import { AWAY } from "./api.js";
import { button, el } from "./dom.js";

const VIEWS = [
    { id: "keys", title: "Keys", file: "keys.js", scope: "keys" },
    { id: "models", title: "Models", file: "models.js", scope: "models:read" },
    { id: "jobs", title: "Jobs", file: "jobs.js", scope: "answer" },
    { id: "knowledge", title: "Knowledge", file: "bases.js", scope: "answer" },
    { id: "load", title: "Load", file: "load.js", scope: "admin" },
];
let before = null;      // what listens for the key that was signed in before

/** Adds the operator's part to the page of the key `who`, as /auth tells it; `app` holds a header and the chat. */
export function operate(app, who) {
    before?.abort();
    before = new AbortController();
    const chat = app.querySelector(".columns");
    const chooser = app.querySelector(".chooser");
    const menu = app.querySelector("header .menu");
    const skip = document.querySelector(".skip");
    const links = [{ id: "chat", title: "Chat" }, ...VIEWS.filter((view) => who.scopes.includes(view.scope))]
        .map((view) => el("a", { href: `#${view.id}` }, view.title));
    app.querySelector("header h1").after(el("nav", { className: "places", "aria-label": "Views" }, ...links));
    let shown = null;

    const route = (moved) => {
        if (!chat.isConnected) return;          // signed out
        const [id, ...rest] = location.hash.slice(1).split("/");
        const view = VIEWS.find((one) => one.id === id);
        const there = view ? id : "chat";
        for (const link of links) {
            link.ariaCurrent = link.hash === `#${there}` ? "page" : null;
            if (link.ariaCurrent) link.scrollIntoView({ block: "nearest", inline: "nearest" });
        }
        for (const node of [chat, chooser, menu]) if (node) node.hidden = Boolean(view);
        document.title = view ? `${view.title} · Parley` : "Parley";
        skip.textContent = view ? "To the content" : "To the prompt";
        shown?.remove();
        shown = null;
        if (!view) return;
        shown = el("main", { className: "operate", "aria-label": view.title });
        chat.after(shown);
        open(view, shown, who, rest.map(part), moved);
    };
    addEventListener("hashchange", () => route(true), { signal: before.signal });
    skip.addEventListener("click", (event) => {
        if (!shown) return;
        event.preventDefault();
        shown.querySelector("h2").focus();
    }, { signal: before.signal });
    route(false);
}

/** Of an address, which anybody may have typed. */
function part(text) {
    try {
        return decodeURIComponent(text);
    } catch {
        return text;
    }
}

async function open(view, place, who, rest, moved) {
    const head = el("h2", { tabIndex: -1 }, view.title);
    const wait = el("p", { className: "hint", role: "status" }, "Loading…");
    place.replaceChildren(head, wait);
    if (moved) head.focus();
    if (!who.scopes.includes(view.scope)) {
        wait.textContent = `This key lacks the scope ${view.scope}, which this view needs. A key that has it sees it.`;
        return;
    }
    try {
        const { show } = await import(`./${view.file}`).catch((error) => { throw new Error(AWAY, { cause: error }); });
        await show(place, who, rest);
        wait.remove();
    } catch (error) {
        while (head.nextSibling) head.nextSibling.remove();
        place.append(el("p", { className: "error", role: "alert" }, error.message),
            button("Try again", () => open(view, place, who, rest, true)));
    }
}
