// One conversation: its turns, the answer that is being written, and the prompt.
import { call, get, post, stream } from "./api.js";
import { button, el, say } from "./dom.js";
import { colour, show } from "./render.js";

const LATEST = 60;          // turns that are shown at first

export class Conversation {
    /** `choices`: who may answer. `bases`: knowledge bases. `used(id)` hears of each new turn. */
    constructor(choices, bases, used) {
        this.choices = choices;
        this.used = used;
        this.running = null;            // the AbortController of the answer that is being written
        this.who = el("select", { id: "who", "aria-label": "Who answers", onchange: () => this.tellModel() },
            ...["personality", "profile"].map((kind) => el("optgroup", { label: kind === "profile" ? "Profiles" : "Personalities" },
                ...choices.filter((one) => one.kind === kind).map((one) => el("option", { value: `${kind}:${one.name}` }, one.name)))));
        this.model = el("span", { className: "model", "aria-live": "polite" });
        this.chooser = el("div", { className: "chooser" }, this.who, this.model);
        this.log = el("div", { className: "log", role: "log", "aria-label": "Conversation", tabIndex: 0 });
        this.state = el("p", { className: "state", role: "status" });
        this.field = el("textarea", { id: "prompt", rows: 2, placeholder: "Ask something", "aria-label": "Prompt",
            onkeydown: (event) => this.key(event), oninput: () => this.grow() });
        this.go = el("button", { className: "primary" }, "Send");
        this.halt = button("Stop", () => this.stop(), { hidden: true, title: "Escape" });
        this.ticks = bases.map((base) => el("input", { type: "checkbox", value: base.name }));
        this.search = el("input", { type: "checkbox" });
        const asked = bases.map((base, index) => el("label", {}, this.ticks[index], base.name));
        this.node = el("main", {}, this.log, this.state, el("form", { onsubmit: (event) => this.submit(event) },
            this.field, el("div", { className: "send" }, this.go, this.halt),
            el("fieldset", { className: "sources" }, el("legend", {}, "Answer from"), ...asked,
                el("label", { title: "The model decides whether to look something up, and where" }, this.search, "search"))));
        this.tellModel();
    }

    chosen() {
        return this.choices.find((one) => `${one.kind}:${one.name}` === this.who.value);
    }

    tellModel() {
        const one = this.chosen();
        this.model.textContent = one ? `answered by ${one.model}` : "no model answers: see main.py doctor";
    }

    // ------------------------------------------------------------ which conversation

    begin() {
        this.stop();
        this.id = null;
        this.turns = [];
        this.state.textContent = "";
        const greets = this.chosen()?.greets;
        this.draw(greets ? [el("p", { className: "hint" }, [greets].flat().join(" "))] : []);
        this.field.focus();
    }

    async open(id) {
        this.stop();
        try {
            const session = await get(`/answer/${encodeURIComponent(id)}`);
            this.id = id;
            this.turns = session.turns;
            this.state.textContent = "";
            this.draw();
            this.field.focus();
        } catch (error) {
            say(error.message, "error");
        }
    }

    draw(instead = []) {
        const hidden = Math.max(0, this.turns.length - LATEST);
        const earlier = hidden ? [button(`Show ${hidden} earlier`, (event) => {
            event.target.replaceWith(...this.turns.slice(0, hidden).map((turn, at) => this.turn(turn, at)));
        }, { className: "earlier" })] : [];
        this.log.replaceChildren(...(this.turns.length ? earlier : instead),
            ...this.turns.slice(hidden).map((turn, at) => this.turn(turn, hidden + at)));
        this.log.scrollTop = this.log.scrollHeight;
    }

    turn(turn, at) {
        const text = el("div", { className: "text" });
        const node = el("article", { className: turn.role, "aria-label": turn.role === "user" ? "You" : "Answer" }, text,
            el("div", { className: "tools" }, button("Copy", () => navigator.clipboard.writeText(turn.content)
                .then(() => say("Copied"), () => say("The browser does not let this page copy", "error"))),
                turn.role === "user" ? button("Edit", () => this.edit(at)) : button("Again", () => this.again(at))));
        if (turn.role === "user") text.textContent = turn.content;
        else this.write(text, turn);
        if (turn.interrupted) node.append(el("p", { className: "hint" }, "This was cut short."));
        if (turn.citations?.length) node.append(cited(turn.citations));
        return node;
    }

    write(node, turn) {
        show(node, turn.content);
        colour(node);
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
        if (asked < 0) return;
        this.back = asked;
        await this.ask(this.turns[asked].content);
    }

    /** Drops the turns from `at` on, which is a question's. */
    async rewind(at) {
        await post(`/answer/${encodeURIComponent(this.id)}/rewind`, { to: at });
        this.turns = this.turns.slice(0, at);
        this.draw();
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
        this.busy(true);
        try {
            if (this.back !== undefined && this.id !== null) await this.rewind(this.back);
            this.back = undefined;
            this.id ??= `web-${crypto.randomUUID().slice(0, 13)}`;
            this.field.value = "";
            this.grow();
            await this.answer(prompt, control.signal);
        } catch (error) {
            if (error.name !== "AbortError") {
                this.state.textContent = error.message;
                if (!this.field.value) this.field.value = prompt;
            }
        } finally {
            this.running = null;
            this.busy(false);
        }
    }

    busy(yes) {
        this.go.hidden = yes;
        this.halt.hidden = !yes;
        this.log.setAttribute("aria-busy", String(yes));
    }

    async answer(prompt, signal) {
        const id = this.id;
        const first = !this.turns.length;
        const question = { role: "user", content: prompt };
        const reply = { role: "assistant", content: "", interrupted: true };
        const asked = this.turn(question, this.turns.length);
        const node = this.turn(reply, this.turns.length + 1);
        if (first) this.log.replaceChildren();
        this.log.append(asked, node);
        const drawn = this.drawer(node.querySelector(".text"), reply);
        try {
            for await (const event of stream("/answer", this.body(prompt), signal)) this.hear(event, reply, drawn);
        } finally {
            drawn.end();
            if (reply.content || !reply.interrupted) {
                this.turns.push(question, reply);
                node.replaceWith(this.turn(reply, this.turns.length - 1));
            } else {
                asked.remove();
                node.remove();
            }
            this.log.scrollTop = this.log.scrollHeight;
            await this.used(id);
        }
        if (first) this.name(id, prompt);
    }

    body(prompt) {
        const one = this.chosen();
        const knowledge = this.ticks.filter((tick) => tick.checked).map((tick) => tick.value);
        return { prompt, session_id: this.id, ...(one ? { [one.kind]: one.name } : {}),
            ...(knowledge.length ? { knowledge } : {}), ...(this.search.checked ? { search: true } : {}) };
    }

    hear(event, reply, drawn) {
        if (event.delta) {
            reply.content += event.delta;
            drawn.soon();
        } else if (event.queue) {
            this.state.textContent = `Waiting: number ${event.queue.position} in the queue, about ${event.queue.eta_seconds} s`;
        } else if (event.step) {
            this.state.textContent = event.step;
        } else if (event.done) {
            Object.assign(reply, { content: event.result, interrupted: false, citations: event.citations });
            this.state.textContent = told(event);
            this.model.textContent = `answered by ${event.model}`;
        }
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
            await call("PATCH", `/answer/${id}`, { name: words.length > 60 ? `${words.slice(0, 59)}…` : words });
            await this.used(id, true);
        } catch (error) {
            say(error.message, "error");
        }
    }
}

/** How full the window is and what the answer cost, in one line. */
function told(event) {
    const { usage, context, timings } = event;
    const details = usage.prompt_tokens_details;
    const seconds = timings.decode_ms / 1000;
    const parts = [`${usage.total_tokens} of ${context.window} tokens`,
        `${details.cached_tokens} cached, ${details.processed_tokens} processed`,
        seconds > 0 ? `${(usage.completion_tokens / seconds).toFixed(1)} tokens/s` : ""];
    if (context.turns_dropped) parts.push(`${context.turns_dropped} earlier turns left out`);
    return [...parts, ...(event.warnings ?? [])].filter(Boolean).join(" · ");
}

function cited(citations) {
    return el("ol", { className: "citations", "aria-label": "Sources" }, ...citations.map((one) => el("li",
        { value: one.n, className: one.cited ? "cited" : "" },
        one.url ? el("a", { href: one.url, rel: "noopener noreferrer", target: "_blank" }, one.title) : one.title)));
}
