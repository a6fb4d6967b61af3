// The list of conversations: searched, and shown a page at a time, so that thousands are as quick as ten.
import { call, get, getPairs, post } from "./api.js";
import { askFor, button, confirmed, download, el, say } from "./dom.js";

const PAGE = 60;

export class Sessions {
    /** `who`: whose they are, as /auth tells it. `open(id)` shows one, `begin()` a new one; `gone(id)` hears of
     *  those that are deleted. */
    constructor(who, open, begin, gone) {
        this.own = `${who.id}/`;
        this.open = open;
        this.begin = begin;
        this.gone = gone;
        this.names = new Map();
        this.shown = PAGE;
        this.current = null;
        this.opener = button("☰", () => this.unfold(this.opener.ariaExpanded !== "true"),
            { className: "menu", "aria-label": "Conversations", "aria-expanded": "false" });
        this.search = el("input", { type: "search", placeholder: "Search names", "aria-label": "Search conversations",
            oninput: () => { this.shown = PAGE; this.draw(); } });
        this.list = el("ul", { "aria-label": "Conversations" });
        this.end = el("div", { className: "end" });
        this.node = el("nav", { "aria-label": "Conversations" },
            button("New conversation", () => this.choose(null), { className: "primary", title: "Ctrl+Shift+O" }),
            this.search, this.list, this.end);
        new IntersectionObserver((seen) => {
            if (seen.some((one) => one.isIntersecting) && this.shown < this.found().length) {
                this.shown += PAGE;
                this.draw();
            }
        }).observe(this.end);
    }

    async load() {
        // The master key sees everybody's, as <key>/<session>: here only its own.
        const names = (await getPairs("/answer?order=used")).map(([id, name]) => [id.replace(this.own, ""), name]);
        this.names = new Map(names.filter(([id]) => !id.includes("/")));
        this.draw();
    }

    /** A conversation has a new turn: it comes first. `current`: the one that is shown. `name`: that of a new one. */
    async used(id, current, name = this.names.get(id)) {
        this.current = current;
        if (name === undefined) await this.load();
        name ??= this.names.get(id);
        if (name === undefined) return;
        this.names.delete(id);
        this.names = new Map([[id, name], ...this.names]);
        this.draw();
    }

    found() {
        const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
        return [...this.names].filter(([id, name]) => words.every((word) => `${name} ${id}`.toLowerCase().includes(word)));
    }

    draw() {
        this.stale = this.list.querySelector(".pop") !== null;      // an open menu is not pulled away
        if (this.stale) return;
        const found = this.found(), focused = this.list.contains(document.activeElement) && document.activeElement;
        const [id, kind] = focused ? [focused.closest("li").firstChild.title, focused.className] : [];
        this.list.replaceChildren(...found.slice(0, this.shown).map(([id, name]) => this.entry(id, name)));
        if (focused) this.focusOn(id, kind);
        this.end.textContent = found.length ? "" : this.names.size ? "Nothing found" : "No conversations yet";
    }

    entry(id, name) {
        const open = button(name || id, () => this.choose(id), { className: "name", title: id,
            "aria-current": id === this.current ? "true" : undefined });
        const more = button("⋯", () => this.menu(id, name, more), { className: "more", "aria-label": `More of ${name || id}`,
            "aria-haspopup": "menu" });
        return el("li", {}, open, more);
    }

    /** Where the screen is narrow the list is shown on demand. */
    unfold(yes) {
        this.opener.ariaExpanded = String(yes);
        this.node.classList.toggle("unfolded", yes);
    }

    async choose(id) {
        this.current = id;
        this.draw();
        this.unfold(false);
        if (id === null) return this.begin();
        this.current = await this.open(id);
        this.draw();
    }

    menu(id, name, at) {
        const close = () => {
            pop.remove();
            if (this.stale) this.draw();
            this.focusOn(id);
        };
        const item = (text, act) => el("li", { role: "none" }, button(text, async () => {
            close();
            try {
                await act();
            } catch (error) {
                say(error.message, "error");
            }
            if (document.activeElement === document.body) this.focusOn(id);
        }, { role: "menuitem" }));
        const path = `/answer/${encodeURIComponent(id)}`, file = (name || id).replace(/[^\p{L}\p{N} ._-]/gu, "_").slice(0, 80);
        const pop = el("ul", { className: "pop", role: "menu", onkeydown: (event) => this.keys(event, pop, close) },
            item("Rename", async () => {
                const wanted = await askFor("New name", name, "Rename");
                if (wanted) await call("PATCH", path, { name: wanted }).then(() => this.load());
            }),
            item("Fork", async () => {
                const made = String((await post(`${path}/fork`)).session_id);
                await call("PATCH", `/answer/${encodeURIComponent(made)}`, { name: `${(name || id).slice(0, 190)} (copy)` });
                await this.load();
                await this.choose(made);
            }),
            item("Export as JSON", async () => download(`${file}.json`, "application/json",
                JSON.stringify(await get(path), null, 2))),
            item("Export as Markdown", async () => download(`${file}.md`, "text/markdown", written(await get(path)))),
            item("Delete", async () => {
                if (!await confirmed(`Delete “${name || id}” for good?`, "Delete")) return;
                await call("DELETE", path);
                this.names.delete(id);
                this.draw();
                await this.gone(id);
                if (id === this.current) await this.choose(null);
            }));
        document.querySelector(".pop")?.remove();
        at.after(pop);
        pop.querySelector("button").focus();
        setTimeout(() => document.addEventListener("click", (event) => {
            if (pop.contains(event.target)) return;
            pop.remove();
            if (this.stale) this.draw();
        }, { once: true }));
    }

    /** The list was drawn anew: to the button of `kind` where the focus was, or what is left. */
    focusOn(id, kind = "more") {
        const entry = [...this.list.children].find((one) => one.firstChild.title === id);
        (entry?.querySelector(`.${kind}`) ?? this.search).focus();
    }

    keys(event, pop, close) {
        const items = [...pop.querySelectorAll("button")];
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (event.key === "Escape") {
            event.stopPropagation();
            close();
        } else if (event.key === "Tab") {
            close();
        } else if (event.key === "Home" || event.key === "End") {
            event.preventDefault();
            items.at(event.key === "Home" ? 0 : -1).focus();
        } else if (step) {
            event.preventDefault();
            items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
        }
    }
}

function written(session) {
    const turns = session.turns.map((turn) => `## ${turn.role === "user" ? "Question" : "Answer"}\n\n${turn.content}\n`);
    return [`# ${session.name}\n`, ...turns].join("\n");
}
