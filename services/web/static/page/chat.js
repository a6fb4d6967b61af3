// One conversation: its turns, the answer that is being written, and the prompt. What the server keeps is the truth.
import { Aloud } from "./aloud.js";
import { ApiError, call, get, post, stream } from "./api.js";
import { button, el, say } from "./dom.js";
import { baseOf, Files, isOwn } from "./files.js";
import { show } from "./render.js";
import { addReasoning, addStep, told, turnNode } from "./turns.js";

const LATEST = 60;                      // turns that are shown at first
const CHOICE = "parley-who";            // kept for this tab
const LOST = "The connection was lost before the answer ended.";
const TRIES = 60;                       // to find the server again, one a second

export class Conversation {
    /** `choices`: who may answer. `embeds`: whether files can be indexed. `bases`: knowledge bases. `used(id)` hears of
     *  each new turn. `first`: what a new conversation shows beside the greeting. */
    constructor(choices, embeds, bases, used, makeFirst) {
        this.choices = choices;
        this.used = used;
        this.bases = new Set(bases.map((base) => base.name));
        this.running = null;            // the AbortController of the answer that is being written
        this.first = makeFirst((choice, prompt) => this.propose(choice, prompt));
        this.build(embeds, bases.filter((base) => !isOwn(base.name)));
        this.tellModel();
        document.addEventListener("visibilitychange", () => {
            if (!document.hidden && this.node.isConnected && this.id !== null && !this.running) this.look();
        });
    }

    build(embeds, bases) {
        this.who = el("select", { id: "who", "aria-label": "Who answers", onchange: () => this.choose() },
            ...["profile", "personality"].map((kind) => el("optgroup", { label: kind === "profile" ? "Profiles" : "Personalities" },
                ...this.choices.filter((one) => one.kind === kind).map((one) => el("option", { value: `${kind}:${one.name}` }, one.name)))));
        const kept = sessionStorage.getItem(CHOICE);
        const known = [...this.who.options].map((one) => one.value);
        const chosen = known.includes(kept) ? kept : known.find((one) => one.startsWith("profile:"));   // the selected one
        if (chosen) this.who.value = chosen;
        this.model = el("span", { className: "model", "aria-live": "polite" });
        this.chooser = el("div", { className: "chooser" }, this.who, this.model);
        // Tokens are not read out one by one: `aloud` tells sentences.
        this.log = el("div", { className: "log", role: "log", "aria-live": "off", "aria-label": "Conversation", tabIndex: 0 });
        const heard = el("div", { className: "heard", "aria-live": "polite" });
        this.aloud = new Aloud(heard);
        this.state = el("p", { className: "state", role: "status" });
        this.meter = el("meter", { "aria-label": "Context window in use", hidden: true });
        this.field = el("textarea", { id: "prompt", rows: 2, placeholder: "Ask something", "aria-label": "Prompt",
            onkeydown: (event) => this.key(event), oninput: () => this.grow() });
        this.go = el("button", { className: "primary" }, "Send");
        this.halt = button("Stop", () => this.stop(), { hidden: true, title: "Escape" });
        this.ticks = bases.map((base) => el("input", { type: "checkbox", value: base.name }));
        this.own = el("input", { type: "checkbox" });
        this.search = el("input", { type: "checkbox" });
        this.node = el("main", { "aria-label": "Chat" });
        this.files = new Files(this.node, embeds);
        this.node.append(this.log, heard, el("div", { className: "status" }, this.meter, this.state), this.form(bases));
    }

    form(bases) {
        return el("form", { onsubmit: (event) => this.submit(event) }, this.files.list, this.field,
            el("div", { className: "send" }, this.go, this.halt),
            el("div", { className: "beside" }, this.files.add, el("fieldset", { className: "sources" },
                el("legend", {}, "Answer from"), el("label", { hidden: true }, this.own, "the files of this conversation"),
                ...bases.map((base, index) => el("label", {}, this.ticks[index], base.name)),
                el("label", { title: "The model decides whether to look something up, and where" }, this.search, "search"))));
    }

    chosen() {
        return this.choices.find((one) => `${one.kind}:${one.name}` === this.who.value);
    }

    choose() {
        sessionStorage.setItem(CHOICE, this.who.value);
        this.tellModel();
        if (!this.turns.length) this.draw();
    }

    tellModel() {
        const one = this.chosen();
        this.model.textContent = one ? `answered by ${one.model}` : "no model answers: see main.py doctor";
    }

    propose(choice, prompt) {
        this.who.value = `${choice.kind}:${choice.name}`;
        this.choose();
        this.field.value = prompt;
        this.field.focus();
    }

    // ------------------------------------------------------------ which conversation

    begin() {
        this.enter(null, []);
    }

    async open(id) {
        this.stop();
        try {
            this.enter(id, (await get(path(id))).turns);
        } catch (error) {
            say(error.message, "error");
        }
    }

    enter(id, turns) {
        this.stop();
        this.id = id;
        this.back = undefined;
        this.tell(turns.at(-1) ?? {});
        this.hasFiles(id !== null && this.bases.has(baseOf(id)));
        this.take(turns);
        this.field.focus();
    }

    hasFiles(yes) {
        this.own.checked = yes;
        this.own.parentNode.hidden = !yes;
    }

    /** A conversation is deleted: its files go too. */
    async forget(id) {
        if (this.bases.delete(baseOf(id))) await call("DELETE", `/knowledge/${baseOf(id)}`);
    }

    take(turns) {
        this.turns = turns;
        this.draw();
    }

    /** The turns as the server has them. Another tab may have changed them, or the server been away. */
    async look(tries = 1) {
        const id = this.id;
        for (let left = tries; left > 0; left--) {
            try {
                const { turns } = await get(path(id));
                if (this.id === id && !same(turns, this.turns)) this.take(turns);
                return true;
            } catch (error) {
                if (error instanceof ApiError && error.status < 500) return error.status === 404 && !this.turns.length;
            }
            if (left > 1) await new Promise((resolve) => setTimeout(resolve, 1000));
            if (this.id !== id) break;
        }
        return false;
    }

    draw() {
        const hidden = Math.max(0, this.turns.length - LATEST);
        const greets = [this.chosen()?.greets ?? "What would you like to know?"].flat().join(" ");
        const before = hidden ? [button(`Show ${hidden} earlier`, (event) => {
            event.target.replaceWith(...this.turns.slice(0, hidden).map((turn, at) => this.turn(turn, at)));
            this.log.focus();
        }, { className: "earlier" })] : this.turns.length ? [] : [el("p", { className: "greeting" }, greets), this.first];
        this.log.replaceChildren(...before, ...this.turns.slice(hidden).map((turn, at) => this.turn(turn, hidden + at)));
        this.log.scrollTop = this.turns.length ? this.log.scrollHeight : 0;
    }

    turn(turn, at, live = false) {
        return turnNode(turn, at, { edit: () => this.edit(at), again: () => this.again(at) }, live);
    }

    // ------------------------------------------------------------ going back

    /** Puts question `at` into the prompt again; what came from there on goes when it is sent. */
    edit(at) {
        this.field.value = this.turns[at].content;
        this.back = at;
        this.state.textContent = "Sending this replaces what follows it. Escape leaves it as it is.";
        this.grow();
        this.field.focus();
    }

    async again(at) {
        const asked = this.turns.slice(0, at).findLastIndex((turn) => turn.role === "user");
        if (asked < 0 || this.running) return;
        this.back = asked;
        await this.ask(this.turns[asked].content);
    }

    /** Drops the turns from `at` on, which is a question's; not where they are others than those on the page. */
    async rewind(at) {
        const content = this.turns[at].content;
        if (!await this.look() || this.turns[at]?.content !== content) {
            throw new Error("This conversation has changed elsewhere: look at it again.");
        }
        await post(`${path(this.id)}/rewind`, { to: at });
        this.take(this.turns.slice(0, at));
    }

    // ------------------------------------------------------------ asking

    key(event) {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            this.submit(event);
        } else if (event.key === "Escape" && this.back !== undefined && !this.running) {
            this.back = undefined;
            this.field.value = "";
            this.state.textContent = "";
        }
    }

    grow() {
        this.field.rows = Math.min(12, Math.max(2, this.field.value.split("\n").length));
    }

    submit(event) {
        event.preventDefault();
        const prompt = this.field.value;
        if (prompt.trim() && !this.running) this.ask(prompt);
    }

    stop() {
        this.running?.abort();
    }

    async ask(prompt) {
        const control = this.running = new AbortController();
        this.said = false;
        this.busy(true);
        try {
            if (this.back !== undefined && this.id !== null) await this.rewind(this.back);
            this.back = undefined;
            this.id ??= newId();
            const own = await this.files.index(this.id, control.signal, (text) => { this.state.textContent = text; });
            if (own) {
                this.bases.add(own);
                this.hasFiles(true);
            }
            this.field.value = "";
            this.grow();
            await this.answer(prompt, control.signal);
        } catch (error) {
            if (error.name !== "AbortError") await this.failed(error, prompt);
            else if (!this.field.value && !this.said) this.field.value = prompt;
        } finally {
            if (this.running === control) {
                this.running = null;
                this.busy(false);
            }
        }
    }

    /** Says so, looks what the server kept, and leaves the prompt where nothing was said to it. */
    async failed(error, prompt) {
        const id = this.id, busy = error.code === "session_busy";
        this.state.textContent = busy ? `Another tab or program is being answered in this conversation. ${error.message}` : error.message;
        if (!this.said && !this.field.value) this.field.value = prompt;
        if (id === null || !await this.look(error instanceof ApiError ? 1 : TRIES) || this.id !== id) return;
        const last = this.turns.at(-1);
        if (!this.said && !busy && last?.role === "user" && last.content === this.asked) this.back = this.turns.length - 1;
    }

    busy(yes) {
        const focused = document.activeElement;
        this.go.hidden = yes;
        this.halt.hidden = !yes;
        if (yes && focused === this.go) this.halt.focus();
        else if (!yes && [this.halt, document.body].includes(focused)) this.field.focus();
        this.log.setAttribute("aria-busy", String(yes));
    }

    async answer(prompt, signal) {
        const id = this.id, first = !this.turns.length, at = this.turns.length;
        this.asked = this.files.quoted(prompt);
        const question = { role: "user", content: this.asked };
        const reply = { role: "assistant", content: "", interrupted: true, steps: [] };
        const asked = this.turn(question, at), node = this.turn(reply, at + 1, true);
        if (first) this.log.replaceChildren();
        this.log.append(asked, node);
        this.log.scrollTop = this.log.scrollHeight;
        this.aloud.begin();
        const drawn = this.drawer(node.querySelector(".text"), reply);
        try {
            for await (const event of stream("/answer", this.body(), signal)) this.hear(event, reply, node, drawn);
            if (reply.interrupted) throw new Error(LOST);
        } catch (error) {
            throw error instanceof TypeError ? new Error(LOST, { cause: error }) : error;
        } finally {
            drawn.end();
            if (this.id === id) this.ended([question, reply], [asked, node]);
            await this.used(id).catch((error) => say(error.message, "error"));
        }
        if (first) this.name(id, prompt);
    }

    /** What was said stays, whole or cut; a question that nothing was said to goes back into the prompt. */
    ended([question, reply], [asked, node]) {
        this.said = Boolean(reply.content) || !reply.interrupted;
        if (this.said) {
            this.turns.push(question, reply);
            node.replaceWith(this.turn(reply, this.turns.length - 1));
            this.files.clear();
            this.aloud.hear(reply.content, true);
        } else {
            asked.remove();
            node.remove();
        }
        this.log.scrollTop = this.log.scrollHeight;
    }

    body() {
        const one = this.chosen();
        const knowledge = this.ticks.filter((tick) => tick.checked).map((tick) => tick.value);
        if (this.own.checked) knowledge.push(baseOf(this.id));
        return { prompt: this.asked, session_id: this.id, ...(one ? { [one.kind]: one.name } : {}),
            ...(knowledge.length ? { knowledge } : {}), ...(this.search.checked ? { search: true } : {}) };
    }

    hear(event, reply, node, drawn) {
        if (event.delta) {
            reply.content += event.delta;
            this.aloud.hear(reply.content);
            drawn.soon();
        } else if (event.reasoning && !event.done) {
            reply.reasoning_content = (reply.reasoning_content ?? "") + event.reasoning;
            addReasoning(node, event.reasoning);
        } else if (event.queue) {
            this.state.textContent = `Waiting: number ${event.queue.position} in the queue, about ${event.queue.eta_seconds} s`;
        } else if (event.step) {
            reply.steps.push(event.step);
            addStep(node, event.step);
            this.state.textContent = event.step;
        } else if (event.done) {
            Object.assign(reply, { content: event.result, interrupted: false, citations: event.citations });
            this.tell(event);
            this.model.textContent = `answered by ${event.model}`;
        }
    }

    /** How full the window was, of an answer. */
    tell(answer) {
        this.state.textContent = told(answer);
        this.meter.hidden = !this.state.textContent;
        if (!this.meter.hidden) Object.assign(this.meter, { max: answer.context.window, value: answer.usage.total_tokens });
    }

    /** Draws an answer that grows, at most once a frame; follows its end unless the reader has scrolled away. */
    drawer(node, reply) {
        let waits = 0;
        const draw = () => {
            waits = 0;
            const follows = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
            show(node, reply.content);
            if (follows) this.log.scrollTop = this.log.scrollHeight;
        };
        return { soon: () => { waits ||= requestAnimationFrame(draw); }, end: () => cancelAnimationFrame(waits) };
    }

    /** A new conversation is called by its first words. */
    async name(id, prompt) {
        const words = prompt.trim().replace(/\s+/g, " ");
        try {
            await call("PATCH", path(id), { name: words.length > 60 ? `${words.slice(0, 59)}…` : words });
            await this.used(id, true);
        } catch (error) {
            say(error.message, "error");
        }
    }
}

// Lists are ordered by id: that of a younger conversation comes later.
const newId = () => `web-${Date.now().toString(36)}-${crypto.randomUUID().slice(0, 8)}`;
const path = (id) => `/answer/${encodeURIComponent(id)}`;
const same = (some, others) => some.length === others.length && some.every((turn, at) => turn.content === others[at].content);
